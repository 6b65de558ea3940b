"""Losses: accurate in value and direction at any scale of the logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kwbench.attacks.search.losses import (
    LOSSES,
    TARGETED,
    LossName,
    cross_entropy,
    dlr,
    fooled,
    margin,
    no_answer,
    probability_margin,
    targeted_dlr,
)
from kwbench.threat import ThreatModel
from support.small_models import broken, first_images, run, sharp, trained_cnn, wrapped

Loss = Callable[[Tensor, Tensor], Tensor]
NAMES = [*LOSSES, *(f"targeted {name}" for name in TARGETED)]


def _loss(name: str, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    if name.startswith("targeted "):
        return lambda logits: TARGETED[name.removeprefix("targeted ")](logits, labels, (labels + 1) % classes)  # type: ignore[index]
    return lambda logits: LOSSES[name](logits, labels)  # type: ignore[index]


def _logits(rows: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((rows, classes), generator=generator)
    return logits, logits.argmax(dim=1)


def _gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_care_that_a_gpu_takes_of_all_rows_changes_none(name: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU does not look whether a row needs care; see `losses`."""
    logits, labels = _logits(60, 10)
    logits *= torch.tensor([1e-6, 1e-4, 1.0, 30.0, 5000.0]).repeat(12)[:, None]
    if masked:
        logits[labels != 9, 9] = -torch.inf
        labels = labels.clamp_max(8)
    loss = _loss(name, labels, 9 if masked else 10)
    on_cpu = loss(logits), _gradient(loss, logits), no_answer(logits)
    alone = [
        loss_of(logits[row : row + 1]) for row, loss_of in enumerate(_loss(name, y[None], 9 if masked else 10) for y in labels)
    ]
    monkeypatch.setattr(Tensor, "is_cpu", property(lambda _: False))
    assert torch.equal(loss(logits), on_cpu[0])
    assert torch.equal(loss(logits), torch.cat(alone))
    assert torch.equal(_gradient(loss, logits), on_cpu[1])
    assert torch.equal(no_answer(logits), on_cpu[2])


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 5000.0])
@pytest.mark.parametrize("name", NAMES)
def test_at_any_scale_the_true_logit_falls_and_another_rises(name: str, scale: float, classes: int) -> None:
    logits, labels = _logits(200, classes)
    gradient = _gradient(_loss(name, labels, classes), logits * scale)
    rows = torch.arange(len(labels))
    assert bool(gradient.isfinite().all())
    others = gradient.scatter(1, labels[:, None], -torch.inf)
    steps = gradient / gradient.abs().amax(dim=1, keepdim=True)
    assert bool((others.amax(dim=1) > 0).all())
    if name == "targeted dlr" and classes > 3:
        return  # of a target below the fourth logit the paper's ratio falls with the true one
    rival = (labels + 1) % classes if name.startswith("targeted") else logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    assert bool((steps[rows, rival] > steps[rows, labels]).all())


@pytest.mark.parametrize("name", ["margin", "dlr", "targeted margin", "targeted dlr"])
@pytest.mark.parametrize("scale", [1e-6, 5000.0])
def test_the_gradients_of_logit_losses_keep_their_signs_under_scaling(name: str, scale: float) -> None:
    logits, labels = _logits(300, 10)
    loss = _loss(name, labels, 10)
    assert torch.equal(_gradient(loss, logits * scale).sign(), _gradient(loss, logits).sign())


@pytest.mark.parametrize("name", NAMES)
def test_with_two_classes_every_loss_has_the_same_direction_at_any_scale(name: str) -> None:
    logits, labels = _logits(300, 2)
    for scale in (1e-6, 1.0, 5000.0):
        gradient = _gradient(_loss(name, labels, 2), logits * scale)
        assert torch.equal(gradient.sign(), 1 - 2.0 * F.one_hot(labels, 2))


@pytest.mark.parametrize(
    "name", ["cross_entropy", "probability_margin", "targeted cross_entropy", "targeted probability_margin"]
)
@pytest.mark.parametrize("gap", [5.0, 9.0, 12.0, 30.0, 60.0])
def test_a_saturated_softmax_gives_the_direction_of_exact_arithmetic(name: str, gap: float) -> None:
    logits, labels = _logits(100, 10)
    logits = logits + gap * F.one_hot(labels, 10)
    gradient = _gradient(_loss(name, labels, 10), logits).double()

    wide, rows = logits.double(), torch.arange(100)
    target = (labels + 1) % 10 if name.startswith("targeted") else wide.scatter(1, labels[:, None], -torch.inf).argmax(1)
    # Computed without the cancelling difference 1 - p: q = 1 - p_true is the sum of the other probabilities p_o.
    p = wide.softmax(dim=1)
    q = p.clone().index_put((rows, labels), torch.zeros(100, dtype=torch.double)).sum(dim=1, keepdim=True)
    true = F.one_hot(labels, 10)
    rise = true * -q + (1 - true) * p  # of -log p_true
    if name == "targeted cross_entropy":
        rise = F.one_hot(target, 10) - p
    if "probability" in name:
        at = p[rows, target][:, None]
        rise = rise * p[rows, labels][:, None] + at * (F.one_hot(target, 10) - p)
    assert F.cosine_similarity(F.normalize(gradient, eps=0), F.normalize(rise, eps=0)).min() > 1 - 1e-6
    assert gradient.norm(dim=1).min() > 1e-4


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("cross_entropy", "probability_margin"))])
def test_losses_rise_with_the_odds_through_saturation_and_far_beyond(name: str) -> None:
    gaps = torch.cat([torch.linspace(-5, 20, 2000), torch.logspace(1.4, 5, 200)])
    logits = torch.stack([gaps, torch.zeros_like(gaps), torch.full_like(gaps, -1.0)], dim=1)
    values = _loss(name, torch.zeros(len(gaps), dtype=torch.long), 3)(logits)
    assert bool((values.diff() <= 0).all())
    assert values[0] > values[1999] > values[-1]


def test_cross_entropy_is_torchs_bit_for_bit_unless_the_model_is_certain() -> None:
    logits, labels = _logits(500, 10)
    logits[::5] *= 5
    certain = 1 - logits.double().softmax(dim=1).amax(dim=1) < 1.1e-4
    assert certain.any()
    assert torch.equal(cross_entropy(logits, labels)[~certain], F.cross_entropy(logits, labels, reduction="none")[~certain])
    plain = _gradient(partial(F.cross_entropy, target=labels, reduction="sum"), logits)
    assert torch.equal(_gradient(_loss("cross_entropy", labels, 10), logits)[~certain], plain[~certain])


def test_the_difference_ratio_is_that_of_the_paper() -> None:
    logits = torch.tensor([[4.0, 3.0, 1.0, 0.0], [1.0, 3.0, 0.5, 0.0]])
    labels, target = torch.tensor([0, 0]), torch.tensor([2, 2])
    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-1 / 3, 2 / 2.5]))
    torch.testing.assert_close(targeted_dlr(logits, labels, target), torch.tensor([-3 / 3.5, -0.5 / 2.75]))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("name", NAMES)
def test_equal_logits_have_finite_gradients(name: str, classes: int) -> None:
    labels = torch.zeros(3, dtype=torch.long)
    logits = torch.stack([torch.zeros(classes), torch.full((classes,), 1e4), torch.full((classes,), -1e-6)])
    loss = _loss(name, labels, classes)
    assert bool(loss(logits).isfinite().all())
    assert bool(_gradient(loss, logits).isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_a_row_that_is_not_finite_does_not_affect_other_rows(name: str, poison: float) -> None:
    logits, labels = _logits(4, 10)
    logits[3] *= 5000
    poisoned = logits.clone()
    poisoned[1, 2], poisoned[2, int(labels[2])] = poison, poison
    loss = _loss(name, labels, 10)
    for whole, spoilt in [(loss(logits), loss(poisoned)), (_gradient(loss, logits), _gradient(loss, poisoned))]:
        assert torch.equal(whole[[0, 3]], spoilt[[0, 3]])


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_equal_logits_has_the_same_loss_alone_and_in_a_batch(name: str) -> None:
    logits, labels = _logits(3, 10)
    logits[1] = 1e-5 * torch.arange(10)
    for answer in (lambda some, of: _loss(name, of, 10)(some), lambda some, of: _gradient(_loss(name, of, 10), some)):
        torch.testing.assert_close(answer(logits, labels)[1], answer(logits[1:2], labels[1:2])[0])  # type: ignore[no-untyped-call]


def test_finite_logits_whose_sum_is_not_are_finite() -> None:
    logits = torch.tensor([[3e38, 3e38, 0.0], [0.0, 1.0, 2.0], [0.0, torch.nan, 1.0], [torch.inf, 0.0, 0.0]])
    assert no_answer(logits[:2]).tolist() == [False, False]
    assert no_answer(logits).tolist() == [False, False, True, True]


@settings(max_examples=60, deadline=None)
@example([[0.0, -2.0, -2.0, -1.401298464324817e-45]], 3)
@given(
    st.lists(st.lists(st.floats(-2e4, 2e4, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(0, 3),
)
def test_losses_are_finite_and_the_margins_agree_in_sign(rows: list[list[float]], label: int) -> None:
    logits = torch.tensor(rows)
    labels = torch.full((len(rows),), label)
    for name in NAMES:
        loss = _loss(name, labels, 4)
        assert bool(loss(logits).isfinite().all()), name
        assert bool(_gradient(loss, logits).isfinite().all()), name
    wrong = margin(logits, labels) > 0
    assert bool(fooled(logits, labels)[wrong].all())
    # A quotient of the smallest float32 numbers may underflow to zero.
    assert bool((dlr(logits, labels)[wrong] >= 0).all())
    assert bool((dlr(logits, labels)[margin(logits, labels) > 1e-30] > 0).all())
    assert bool((probability_margin(logits, labels)[~wrong] <= 0).all())


class _Scaled(torch.nn.Module):
    def __init__(self, network: torch.nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x) * self.scale
        return logits


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd"])
@pytest.mark.parametrize("loss", LOSSES)
def test_scaled_logits_do_not_protect_a_model_from_any_loss(loss: str, attack: str) -> None:
    threat = ThreatModel.of("linf", "0.12")
    parameters: dict[str, Any] = {"loss": loss} | ({} if attack == "fgsm" else {"steps": 10})
    if attack == "pgd":
        parameters["relative_step_size"] = 0.2
    batch = sharp(first_images(96))
    plain = broken(run(attack, parameters, batch, threat)).double().mean()
    for scale in (5000.0, 1e-6):
        scaled = broken(run(attack, parameters, batch, threat, model=wrapped(_Scaled(trained_cnn(), scale)))).double().mean()
        assert scaled > plain - 0.08, (scale, plain, scaled)


@pytest.mark.parametrize("loss", [*LOSSES])
def test_masked_classes_change_no_loss_and_no_gradient(loss: LossName) -> None:
    """As if the class were not there: the losses of fewer classes, with a gradient of zero at the masked one."""
    generator = torch.Generator().manual_seed(0)
    for classes, scale in ((3, 1.0), (5, 1.0), (5, 1e-5), (5, 1e3)):
        few = (scale * torch.randn((8, classes), generator=generator)).requires_grad_()
        y = torch.arange(8) % classes
        masked = torch.cat([few.detach(), torch.full((8, 1), -torch.inf)], dim=1).requires_grad_()
        results = [LOSSES[loss](logits, y) for logits in (few, masked)]
        torch.testing.assert_close(results[1], results[0])
        gradients = [torch.autograd.grad(value.sum(), at)[0] for value, at in zip(results, (few, masked), strict=True)]
        torch.testing.assert_close(gradients[1][:, :-1], gradients[0])
