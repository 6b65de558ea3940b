"""Lookaheads: expected from the sample alone, they save backward passes and change no image."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kwbench.attacks import build_attack
from kwbench.attacks.search import ascent, parallel_climb
from kwbench.attacks.search.lookahead import current_margin, expected_margin, most_lookaheads, should_look_ahead
from kwbench.attacks.search.losses import LOSSES, LossName, margin, margin_after
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import cnn, first_images, sharp


@pytest.mark.parametrize("start", [-60.0, -20.0, -9.3, -9.1, -3.0, -0.1, 0.5])
def test_cross_entropy_in_log_odds_is_linear_even_if_saturated(start: float) -> None:
    logits = torch.tensor([[0.0, start]], requires_grad=True)
    value = LOSSES["cross_entropy"](logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    for change in (0.5, -start / 2, -start + 1):
        ahead = margin_after("cross_entropy", value.detach(), gradient[:, 1] * change)
        assert ahead.item() == pytest.approx(start + change, abs=1e-2)


@pytest.mark.parametrize("loss", ["margin", "dlr", "probability_margin"])
def test_a_loss_that_is_zero_at_the_decision_boundary_is_extrapolated_linearly(loss: LossName) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    value = LOSSES[loss](logits, torch.tensor([0]))
    assert margin_after(loss, value, -2 * value).item() > 0 > margin_after(loss, value, -value / 2).item()


def test_after_the_first_step_the_margin_is_extrapolated_linearly() -> None:
    here, before = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-3.0, -1.5, -torch.inf])
    ahead = expected_margin(here, before, "margin", here, torch.tensor([-9.0, -9.0, 2.0]))
    assert ahead.tolist() == [1.0, -0.5, 1.0]


def test_only_samples_expected_to_break_are_looked_ahead_at_and_none_in_late_steps() -> None:
    expected = torch.tensor([0.0, 1.0, -0.1, math.nan, -math.inf])
    assert should_look_ahead(expected).tolist() == [True, True, False, False, False]
    assert most_lookaheads(3) == 3
    assert most_lookaheads(1000) == most_lookaheads(1001)


def test_margins_that_are_not_a_number_predict_no_success() -> None:
    logits = torch.tensor([[1.0, math.nan], [1.0, -math.inf], [1.0, 3.0]])
    here = current_margin(logits, torch.tensor([0, 0, 0]))
    assert here.tolist() == [-math.inf, -math.inf, 2.0]
    assert not should_look_ahead(expected_margin(here, here, "margin", here, here))[:2].any()
    assert here[2] == margin(logits[2:], torch.tensor([0]))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("pgd", {"steps": 12, "relative_step_size": 0.25}),
        ("mim", {"steps": 12, "relative_step_size": 0.25}),
        ("apgd", {"steps": 12}),
        ("apgd", {"steps": 12, "loss": "margin", "gradient": {"kind": "relaxed"}}),
    ],
)
def test_lookaheads_save_backward_passes_and_change_no_image(
    name: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, attack = sharp(first_images(150)), build_attack(name, parameters)

    def proposed(eps: str) -> tuple[Tensor, list[int], list[int]]:
        model = cnn(tile=16)
        with model.metering(len(batch)):
            images = attack(model, batch.x, batch.y, ThreatModel.of("linf", eps), SampleRandom(0, name, batch.samples))
            return images, *model.work()

    def nobody(expected: Tensor) -> Tensor:
        return torch.zeros_like(expected, dtype=torch.bool)

    for eps in ("0.15", "0.3"):
        images, forwards, backwards = proposed(eps)
        with monkeypatch.context() as patch:
            for module in (ascent, parallel_climb):
                patch.setattr(module, "should_look_ahead", nobody)
            same, fewer, more = proposed(eps)
        assert torch.equal(images, same)
        extra = [looked - plain for looked, plain in zip(forwards, fewer, strict=True)]
        assert all(0 <= passes <= most_lookaheads(12) for passes in extra)
        assert sum(backwards) < sum(more)
        if eps == "0.15":
            assert sum(extra) > 0, "some looks must be in vain"
        else:
            assert sum(backwards) < 0.95 * sum(more)
            assert sum(forwards) + sum(backwards) < sum(fewer) + sum(more)
