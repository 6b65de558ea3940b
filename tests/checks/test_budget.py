"""Doubling the budget raises a doubt if and only if it breaks more samples."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from kwbench.attacks import build_attack
from kwbench.checks import Retried, Survivors, budget_is_enough, retried
from kwbench.finding import Finding
from kwbench.judge import FRESH_DRAWS, SELECTION_DRAWS
from kwbench.threat import ThreatModel
from support.small_models import Noisy, first_images, sharp, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.2")
ROWS = tuple(range(64))


def again(attacks: dict[str, dict[str, Any]], network: nn.Module | None = None, **changes: Any) -> Finding:
    """Attack 64 samples, all survivors by default, with twice the budget of the attacks."""
    model = wrapped(network or trained_cnn())
    images = sharp(first_images(120)).take(ROWS)
    model.measure_randomness(images.x, images.x)
    values: dict[str, Any] = {"rows": ROWS, "values": (1.0,) * 64, "robust_accuracy": 1.0, "doubled": tuple(attacks)} | changes
    survivors = Survivors(**values)
    built = {label: build_attack(label, parameters, None) for label, parameters in attacks.items()}
    parts = [retried(model, images.take(part.rows), LINF, 0, part, built) for part in survivors.parts()]
    return budget_is_enough(parts, survivors.robust_accuracy)


def test_twice_the_budget_that_breaks_more_is_a_doubt() -> None:
    finding = again({"pgd": {"steps": 20}})
    assert finding.fires
    assert finding.figure is not None
    assert finding.figure > 0.5
    assert len(finding.samples) > 32
    assert "64 of the surviving samples" in finding.statement


def test_twice_the_budget_of_a_useless_attack_brings_nothing() -> None:
    finding = again({"pgd": {"steps": 1, "step_size": 0.001, "random_start": False}})
    assert (finding.figure, finding.fires) == (0, False)


def test_the_gain_is_scaled_to_all_survivors() -> None:
    whole, tenth = (again({"pgd": {"steps": 20}}, robust_accuracy=standing).figure for standing in (1.0, 0.1))
    assert whole is not None
    assert tenth == pytest.approx(whole / 10, abs=1e-6)


def test_the_gain_of_a_useless_attack_on_a_stochastic_model_is_within_the_noise_of_its_draws() -> None:
    network = Noisy(trained_cnn(), 0.8)
    model = wrapped(network)
    images = sharp(first_images(120)).take(ROWS)
    model.measure_randomness(images.x, images.x)
    # Accuracies from disjoint draws, as in an evaluation.
    to_beat, values = (
        tuple((model.count_correct(images.x, images.y, draws)[0] / draws).tolist()) for draws in (SELECTION_DRAWS, FRESH_DRAWS)
    )
    changes = {"values": values, "to_beat": to_beat, "robust_accuracy": sum(values) / 64}
    finding = again({"pgd": {"steps": 1, "step_size": 1e-6, "random_start": False}}, network, **changes)
    assert finding.figure is not None
    assert abs(finding.figure) < 0.05
    assert 0.01 < finding.threshold < 0.05
    assert again({"pgd": {"steps": 20}}, network, **changes).fires


def test_without_survivors_no_budget_is_needed() -> None:
    finding = again({"pgd": {}}, rows=(), values=())
    assert (finding.figure, finding.fires) == (0, False)


def test_without_an_attack_to_double_there_is_no_figure() -> None:
    finding = again({})
    assert (finding.figure, finding.fires) == (None, False)
    assert "could not be carried out" in finding.statement


def test_two_other_attacks_are_doubled_if_no_successful_one_can_be() -> None:
    attacks: dict[str, dict[str, Any]] = {"pgd": {"steps": 1}, "apgd": {"steps": 1}, "square": {"steps": 2}}
    statement = again(attacks, doubled=("fgsm",), otherwise=tuple(attacks)).statement
    assert "(pgd, apgd;" in statement


def test_an_attack_that_raises_leaves_no_figure() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = trained_cnn()

        def forward(self, x: Any) -> Any:
            if x.requires_grad:
                raise ValueError("no gradients, please")
            return self.network(x)

    finding = again({"pgd": {"steps": 2}}, Failing())
    assert finding.figure is None
    assert "no gradients, please" in finding.statement


def test_a_part_that_fails_leaves_no_figure_for_all_survivors() -> None:
    good = Retried(("pgd",), ("a",), (1.0,), (1.0,))
    assert budget_is_enough([good], 1.0).figure == 0
    assert budget_is_enough([good, Retried(failure="it hung")], 1.0).figure is None


def test_the_parts_of_survivors_depend_on_their_number_alone() -> None:
    survivors = Survivors(rows=tuple(range(70)), values=tuple(row / 70 for row in range(70)), doubled=("pgd",))
    parts = survivors.parts()
    assert [len(part.rows) for part in parts] == [23, 23, 24]
    assert [len(part.rows) for part in replace(survivors, rows=tuple(range(9)), values=()).parts()] == [4, 5]
    assert [len(part.rows) for part in replace(survivors, rows=(7,), values=()).parts()] == [1]
    assert [value for part in parts for value in part.values] == list(survivors.values)
    assert all(part.to_beat == () and part.doubled == ("pgd",) for part in parts)


def test_restarts_of_the_evaluation_count_as_half_of_the_doubled_budget() -> None:
    still = {"steps": 5, "step_size": 1e-9, "early_exit": False}
    assert _passes_of({**still, "restarts": 3}) == 3 * _passes_of({**still, "restarts": 1})
    assert _passes_of({**still, "restarts": 1}) == _passes_of({**still, "random_start": False}) / 2


def test_restarts_that_the_evaluation_did_not_run_on_all_survivors_are_run_again() -> None:
    still = {"steps": 5, "step_size": 1e-9, "early_exit": False}
    assert _passes_of(still, tried=()) == 2 * _passes_of(still, tried=("pgd",))


def _passes_of(pgd: dict[str, Any], tried: tuple[str, ...] = ("pgd",)) -> float:
    """Return the backward passes per image of a PGD attack with twice its budget."""
    model = wrapped(deepcopy(trained_cnn()))
    images = sharp(first_images(120)).take(ROWS[:8])
    backwards = 0

    def count(_: nn.Module, images_in: tuple[Any, ...], __: Any) -> None:
        nonlocal backwards
        backwards += images_in[0].requires_grad

    model.module.register_forward_hook(count)
    survivors = Survivors(rows=ROWS[:8], values=(1.0,) * 8, robust_accuracy=1.0, doubled=("pgd",), tried=tried)
    assert not retried(model, images, LINF, 0, survivors, {"pgd": build_attack("pgd", pgd, None)}).failure
    return backwards
