"""Batch norms folded into convolutions: the same logits, and only where a norm directly follows a convolution."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kwbench.model.bn_folding import fold_batch_norms
from support.small_models import first_images, normed_cnn, trained_cnn, wrapped


def _norms(module: nn.Module | None) -> int:
    assert module is not None
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def _normed(channels: int, generator: torch.Generator) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).eval().requires_grad_(False)
    assert norm.running_mean is not None
    norm.running_mean.copy_(torch.randn(channels, generator=generator))
    norm.weight.copy_(torch.rand(channels, generator=generator) + 0.5)
    return norm


class Branching(nn.Module):
    """Uses the output of the convolution both in the norm and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = normed_cnn()

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm, *rest = self.network.children()
        inner = convolution(x)
        y: Tensor = norm(inner) + inner
        for layer in rest:
            y = layer(y)
        return y


class Twice(nn.Module):
    """One convolution for two norms."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.network, self.convolution = trained_cnn(), nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
        self.first, self.second = _normed(1, generator), _normed(1, generator)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.first(self.convolution(x)) + self.second(self.convolution(x)))
        return logits


class Before(nn.Module):
    """A norm before the convolution, and another after a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        first, relu, *rest = trained_cnn().children()
        self.network = nn.Sequential(_normed(1, generator), first, relu, _normed(16, generator), *rest)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class Batchwise(nn.Module):
    """Its norm uses the statistics of the batch, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        first, *rest = trained_cnn().children()
        self.network = nn.Sequential(first, nn.BatchNorm2d(16, track_running_stats=False), *rest)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class Collecting(nn.Module):
    """Takes features from a hook that writes into this module, whichever copy of it runs."""

    def __init__(self) -> None:
        super().__init__()
        *body, self.head = normed_cnn().children()
        self.body, self.kept = nn.Sequential(*body), dict[str, Tensor]()
        self.body.register_forward_hook(lambda _, __, answer: self.kept.update(features=answer))

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        logits: Tensor = self.head(self.kept["features"])
        return logits


class Hooked(nn.Module):
    """Has its gradient from a hook on a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.network = normed_cnn()
        self.network.get_submodule("1").register_full_backward_hook(self._flipped)

    @staticmethod
    def _flipped(_: nn.Module, gradients: Any, __: Any) -> tuple[Tensor]:
        return (gradients[0].flip(1),)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class Lofty(Branching):
    """Logits with a large common offset and small differences."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 + 0.05 * super().forward(x)


class Elsewhere(nn.Module):
    """Uses the norm alone only in small batches."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.network = trained_cnn(), Branching()

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm, *_ = self.network.network.children()
        logits: Tensor = self.network(x) if len(x) > 2 else self.plain(norm(convolution(x))[:, :1])
        return logits


class Named(nn.Module):
    """A module whose convolution and norm have two names each."""

    def __init__(self) -> None:
        super().__init__()
        first, second, *rest = normed_cnn().children()
        self.first, self.second = first, second
        self.network = nn.Sequential(first, second, *rest)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class Uncopied(nn.Module):
    """Holds a generator, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.lines = normed_cnn(), (line for line in list[str]())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def test_norms_after_convolutions_are_folded_into_them_and_the_module_is_left_alone() -> None:
    module, x = normed_cnn(), first_images(30).x
    before = module(x)
    copy = fold_batch_norms(module, x[:2])
    assert (_norms(module), _norms(copy)) == (2, 0)
    assert copy is not None
    torch.testing.assert_close(copy(x), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(module(x), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert not any(weights.requires_grad for weights in copy.parameters())
    assert copy.get_submodule("7").weight is module.get_submodule("7").weight, "other weights are shared"


@pytest.mark.parametrize("module", [trained_cnn, Twice, Before, Batchwise])
def test_nothing_is_folded_unless_a_norm_directly_follows_a_convolution(module: Callable[[], nn.Module]) -> None:
    assert fold_batch_norms(module().eval(), first_images(2).x) is None


@pytest.mark.parametrize(
    ("module", "folds"),
    [
        (normed_cnn, True),
        (Named, True),
        (trained_cnn, False),
        (Branching, False),
        (Lofty, False),
        (Elsewhere, False),
        (Collecting, False),
        (Hooked, False),
        (Uncopied, False),
        (Before, False),
    ],
)
def test_folded_norms_are_used_only_if_logits_and_gradients_stay_the_same(module: Callable[[], nn.Module], folds: bool) -> None:
    images = first_images(48).x
    model = wrapped(module(), tile=16)
    model.plan_passes(images)
    assert (model.effective_precision("folded") == "folded") is folds
    exact = model(images)
    with model.computing_in("folded"):
        quick = model(images)
        for rows in (slice(0, 1), slice(3, 10), slice(0, 40)):
            assert torch.equal(model(images[rows]), quick[rows]), "a row must not depend on other rows"
    assert torch.equal(quick, exact) is not folds
    torch.testing.assert_close(quick, exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(images), exact)


def test_nothing_is_folded_in_random_models_or_before_passes_are_planned() -> None:
    model = wrapped(normed_cnn(), tile=16)
    assert model.effective_precision("folded") == "float32"
    model.plan_passes(first_images(16).x)
    assert model.effective_precision("folded") == "folded"
    model.stochastic = True
    model.plan_passes(first_images(16).x)
    assert model.effective_precision("folded") == "float32"


def test_a_lack_of_memory_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped(normed_cnn(), tile=16)
    model.plan_passes(first_images(16).x)

    def short(module: nn.Module, images: Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    with monkeypatch.context() as patched:
        patched.setattr("kwbench.model.search_precision.fold_batch_norms", short)
        with pytest.raises(MemoryError):
            model.effective_precision("folded")
    assert model.effective_precision("folded") == "folded"


def test_folding_uses_the_module_itself_even_while_its_forward_is_replaced() -> None:
    model = wrapped(normed_cnn(), tile=16)
    model.plan_passes(first_images(16).x)
    with model.replacing_forward(lambda module, x: (torch.zeros(len(x), 10), 1)):
        assert model.effective_precision("folded") == "folded"
