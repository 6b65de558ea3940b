"""Gradients that are cut, replaced, not finite or refused: what estimators, attacks and suites make of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kwbench
from kwbench.attacks import build_attack
from kwbench.checks.operations import autograd_is_exact
from kwbench.gradients import EXACT, CutGradientError, Exact, Relaxed
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.relaxation.survey import survey
from kwbench.threat import ThreatModel
from support.relaxation import FunctionModule as Applied
from support.small_models import Noisy, first_images, normed_cnn, run, sharp, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.12")
SUITE = """
cascade: true
protocol: [exact]
attacks:
  exact: {attack: apgd, steps: 8, gradient: {kind: exact, unreachable: zero}}
  relaxed: {attack: apgd, steps: 8, gradient: {kind: relaxed, unreachable: zero}}
"""


def _first(logits: Tensor) -> Tensor:
    return logits[None, :, 0]


def _gradient(module: nn.Module, x: Tensor, estimator: Exact | Relaxed = EXACT) -> Tensor:
    rng = SampleRandom(0, "test", ("",) * len(x))
    return estimator(wrapped(module), x, _first, rng).gradients[0]


@torch.no_grad()
def _no_grad(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(x)
    return logits


@torch.inference_mode()
def _inference_mode(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(x)
    return logits


def _switched_off(x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    logits: Tensor = trained_cnn()(x)
    return logits


def _detached(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(x.detach())
    return logits


def _data(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(x.data)
    return logits


def _through_numpy(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(torch.from_numpy(x.detach().numpy() * 1.0))
    return logits


class _Zero(torch.autograd.Function):
    """The identity, whose backward pass gives zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def _replaced(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(_Zero.apply(x))  # type: ignore[no-untyped-call]
    return logits


CUT = [_no_grad, _inference_mode, _switched_off, _detached, _data, _through_numpy]


@pytest.mark.parametrize("function", [*CUT, _replaced])
def test_a_suite_relaxes_whatever_cuts_or_replaces_the_gradient(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    batch = first_images(12)
    options: dict[str, Any] = {"suite": suite, "eps": "0.12", "keep_adversarials": False}
    results = [kwbench.evaluate(module, batch.x, batch.y, **options) for module in (trained_cnn(), Applied(function))]
    plain, hidden = (result.a_rob for result in results)
    assert plain is not None
    assert hidden is not None
    assert plain.value <= 0.75
    assert hidden.value == plain.value
    assert "relaxed" in results[0].summary.skipped
    assert "relaxed" not in results[1].summary.skipped
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("module", [trained_cnn(), normed_cnn(), Noisy(trained_cnn(), 0.1)], ids=["cnn", "normed", "noisy"])
def test_autograd_is_exact_on_sound_models(module: nn.Module) -> None:
    assert survey(module, first_images(4).x).relaxed == ()
    model = wrapped(module)
    model.measure_randomness(first_images(4).x)
    assert autograd_is_exact(model, first_images(4).x)


@pytest.mark.parametrize("function", [_no_grad, _inference_mode, _replaced])
def test_autograd_is_not_exact_where_no_operation_is_to_blame(function: Callable[[Tensor], Tensor]) -> None:
    assert survey(Applied(function), first_images(4).x).relaxed == ()
    assert not autograd_is_exact(wrapped(Applied(function)), first_images(4).x)


@pytest.mark.parametrize("function", CUT)
@pytest.mark.parametrize("name", ["pgd", "autoattack-part", "foolbox:LinfPGD"])
def test_an_attack_on_a_cut_gradient_leaves_errors_with_the_reason(name: str, function: Callable[[Tensor], Tensor]) -> None:
    batch = sharp(first_images(4))
    (outcome, *_) = run(name, {}, batch, LINF, model=wrapped(Applied(function), tile=4))
    assert outcome.status is Status.ERROR
    assert "no gradient reaches the pixels" in outcome.note
    assert "--suite strong" in outcome.note


def test_a_gradient_that_is_wanted_and_cut_raises_by_its_own_name() -> None:
    with pytest.raises(CutGradientError):
        _gradient(Applied(_no_grad), first_images(2).x)
    zero = _gradient(Applied(_no_grad), first_images(2).x, Exact(unreachable="zero"))
    assert not zero.any()


def _flat_patches(x: Tensor) -> Tensor:
    """The root of variances, which are zero where the image is black, times zero."""
    deviation = torch.nn.functional.unfold(x, 2, stride=2).var(dim=1, unbiased=False).sqrt()
    logits: Tensor = trained_cnn()(x) + 0 * deviation.sum(dim=1, keepdim=True)
    return logits


def _quotient(x: Tensor) -> Tensor:
    """x * x / x where it is not zero: the quotient that is not taken has a gradient of NaN."""
    logits: Tensor = trained_cnn()(torch.where(x > 0, x * x / x, x))
    return logits


def _norm(x: Tensor) -> Tensor:
    """The length of what lies outside the pixel range: zero, where a length has no slope."""
    outside = (x - x.clamp(0, 1)).flatten(1).norm(dim=1, keepdim=True)
    logits: Tensor = trained_cnn()(x) + outside
    return logits


def _decomposed(x: Tensor) -> Tensor:
    """The image from its singular values, those of black rows being equal."""
    u, values, v = torch.linalg.svd(x, full_matrices=False)
    logits: Tensor = trained_cnn()((u * values[..., None, :]) @ v)
    return logits


UNDEFINED = [_flat_patches, _quotient, _norm, _decomposed]


@pytest.mark.parametrize("function", UNDEFINED)
def test_relaxed_gradients_leave_undefined_slopes_out(function: Callable[[Tensor], Tensor]) -> None:
    x = first_images(4).x
    gradients = _gradient(Applied(function), x, Relaxed())
    assert bool(gradients.isfinite().all())
    if function is not _decomposed:
        expected = _gradient(trained_cnn(), x)
        close = torch.nn.functional.cosine_similarity(gradients.flatten(1), expected.flatten(1))
        assert bool((close > 0.9).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("function", UNDEFINED)
def test_undefined_slopes_cost_no_attack_its_number(function: Callable[[Tensor], Tensor], norm: str) -> None:
    batch, threat = sharp(first_images(6)), ThreatModel.of(norm, {"linf": "0.3", "l2": "3"}[norm])
    attacks: dict[str, dict[str, Any]] = {
        "fgsm": {},
        "pgd": {"steps": 5},
        "mim": {},
        "apgd": {"steps": 5},
        "deepfool": {"steps": 5},
        "cw": {"steps": 10},
        "autoattack-part": {},
    }
    for name, parameters in attacks.items():
        outcomes = run(name, parameters, batch, threat, model=wrapped(Applied(function), tile=6))
        assert {outcome.status for outcome in outcomes} <= {Status.BROKEN, Status.HELD}, name
    relaxed = run("apgd", {"steps": 10, "gradient": {"kind": "relaxed"}}, batch, threat, model=wrapped(Applied(function)))
    assert {outcome.status for outcome in relaxed} == {Status.BROKEN}


def test_attacks_follow_the_sign_of_infinite_slopes() -> None:
    """At black pixels the slope of a root is infinite, and the corner of the ball that is worst is known."""
    weight = torch.randn((2, 64), generator=torch.Generator().manual_seed(0))
    model = wrapped(Applied(lambda x: x.flatten(1) ** (1 / 2.2) @ weight.T), classes=2)
    batch = first_images(40)
    batch.y[:] = model.predict(batch.x)[0]
    eps = 0.08
    gap = (weight[1 - batch.y] - weight[batch.y]).view(batch.x.shape)
    worst = (batch.x + eps * gap.sign()).clamp(0, 1)
    expected = (model.predict(worst)[0] != batch.y).tolist()
    assert 5 < sum(expected) < 35
    for name, parameters in (("fgsm", {}), ("apgd", {"steps": 10}), ("autoattack-part", {})):
        outcomes = run(name, parameters, batch, ThreatModel.of("linf", str(eps)), model=model)
        broken = [outcome.status is Status.BROKEN for outcome in outcomes]
        assert sum(a != b for a, b in zip(broken, expected, strict=True)) <= 1, name
        assert not any(a and not b for a, b in zip(broken, expected, strict=True)), name


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_are_differentiated_by_backward() -> None:
    class Checkpointed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = checkpoint(trained_cnn(), x, use_reentrant=True)
            return logits

    batch = sharp(first_images(8))
    model = wrapped(Checkpointed())

    def two(logits: Tensor) -> Tensor:
        return torch.stack([logits[:, 0], logits[:, 3]])

    rng = SampleRandom(0, "test", batch.samples)
    expected = EXACT(wrapped(trained_cnn()), batch.x, two, rng)
    torch.testing.assert_close(EXACT(model, batch.x, two, rng).gradients, expected.gradients)
    for name in ("fgsm", "deepfool"):
        statuses = [outcome.status for outcome in run(name, {}, batch, LINF, model=model)]
        assert statuses == [outcome.status for outcome in run(name, {}, batch, LINF)]
    assert build_attack("fgsm", {}).gradient == EXACT
