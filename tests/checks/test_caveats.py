"""Every evaluation names what makes its number worthless, and is silent on sound models."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kwbench.checks import caveats
from kwbench.model import Model
from support.relaxation import FunctionModule as Applied
from support.small_models import Noisy, Quantised, first_images, normed_cnn, trained_cnn, wrapped


def _caveats(module: nn.Module, *, follows_gradients: bool = True, strong: bool = False, **options: Any) -> list[str]:
    batch = first_images(12)
    model: Model = wrapped(module, tile=16, **options)
    near = (batch.x + 0.03).clamp(0, 1)
    model.measure_randomness(near)
    return caveats(model, near, batch.y, follows_gradients=follows_gradients, strong=strong)


@pytest.mark.parametrize("module", [trained_cnn(), normed_cnn(), Noisy(trained_cnn(), 0.1)], ids=["cnn", "normed", "noisy"])
def test_sound_models_have_no_caveats(module: nn.Module) -> None:
    assert _caveats(module) == []


def _no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = trained_cnn()(x)
    return logits


def _through_numpy(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(torch.from_numpy(x.detach().numpy().copy()))
    return logits


def _by_comparison(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()((x > 0.5).float())
    return logits


@pytest.mark.parametrize("function", [_no_grad, _through_numpy, _by_comparison, lambda x: trained_cnn()(x.detach())])
def test_a_cut_gradient_is_named_with_the_suite_to_run(function: Callable[[Tensor], Tensor]) -> None:
    (clause,) = _caveats(Applied(function))
    assert clause.startswith("no gradient reaches the pixels")
    assert clause.endswith("--suite strong does not rely on it")
    assert _caveats(Applied(function), strong=True)[0] == clause.partition(";")[0]
    assert _caveats(Applied(function), follows_gradients=False) == []


def _dead(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(x)
    return logits.round()


@pytest.mark.parametrize("module", [Quantised(trained_cnn()), Applied(_dead)])
def test_a_gradient_of_zero_is_named_with_its_share(module: nn.Module) -> None:
    (clause,) = _caveats(module)
    assert clause.startswith("autograd's gradient is zero on 100 % of the samples")


def test_a_gradient_of_not_a_number_is_named() -> None:
    (clause,) = _caveats(Applied(lambda x: trained_cnn()(x) + (0 * x).sqrt().flatten(1).sum(dim=1, keepdim=True)))
    assert "NaN or infinite at some pixels on 100 % of the samples" in clause


def test_a_backward_pass_that_raises_is_named() -> None:
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise NotImplementedError("no backward pass here")

    (clause,) = _caveats(Applied(lambda x: trained_cnn()(Refusing.apply(x))))  # type: ignore[no-untyped-call]
    assert clause.startswith("autograd fails (NotImplementedError: no backward pass here)")


@pytest.mark.parametrize("squash", [lambda logits: logits.softmax(dim=1), torch.sigmoid], ids=["softmax", "sigmoid"])
def test_probabilities_are_named(squash: Callable[[Tensor], Tensor]) -> None:
    (clause,) = _caveats(Applied(lambda x: squash(trained_cnn()(x))))
    assert clause.startswith("the outputs are probabilities, not logits")


@pytest.mark.parametrize("squash", [lambda logits: logits.log_softmax(dim=1), lambda logits: logits / 100])
def test_log_probabilities_and_small_logits_are_no_probabilities(squash: Callable[[Tensor], Tensor]) -> None:
    assert _caveats(Applied(lambda x: squash(trained_cnn()(x)))) == []


def test_saturated_logits_are_named() -> None:
    (clause,) = _caveats(Applied(lambda x: 1e4 * trained_cnn()(x)))
    assert clause.startswith("the largest logit leads by more than 87 on 100 % of the samples")


def _relative(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(x - x.mean(dim=0) + 0.3)
    return logits


def test_dependence_on_other_images_is_named() -> None:
    for module in (Applied(_relative), nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), *trained_cnn().children())):
        clauses = _caveats(module)
        assert "of the samples depend on other images of the batch" in clauses[0]


def test_a_generator_of_its_own_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    (clause,) = _caveats(Applied(lambda x: trained_cnn()(x + 0.1 * torch.rand(x.shape, generator=generator))))
    assert "change though the global generators repeat" in clause


def test_masked_classes_are_named() -> None:
    (clause,) = _caveats(Applied(lambda x: trained_cnn()(x).index_fill(1, torch.tensor([7]), -torch.inf)))
    assert clause == "10 % of the logits are minus infinity, which is allowed for other classes than the predicted one"


@pytest.mark.parametrize(
    ("seed", "name"),
    [(torch.manual_seed, "torch"), (np.random.seed, "numpy"), (random.seed, "random")],
    ids=["torch", "NumPy", "Python"],
)
def test_a_generator_that_forward_seeds_is_named(seed: Callable[[int], Any], name: str) -> None:
    def seeding(x: Tensor) -> Tensor:
        seed(0)
        logits: Tensor = trained_cnn()(x)
        return logits

    (clause,) = _caveats(Applied(seeding))
    assert clause.startswith(f"forward seeds the global generator of {name}:")
