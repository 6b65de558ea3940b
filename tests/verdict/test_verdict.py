"""Verdicts from invented numbers and findings."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kwbench.finding import Criterion, Finding
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.verdict import CAVEAT, verdict, verdict_json, verdict_on_record
from support.records import deterministic, drawn, record, specification

BUDGET = Criterion("twice the budget", "doubt", "a larger budget", role="budget")
OPERATIONS = Criterion("unseen", "doubt", "an attack that knows the operations that could not be seen", role="unseen")
ENOUGH = BUDGET.finding(0.0, 0.01, "twice the budget takes 0.0 points")
SEEN = OPERATIONS.finding(0.0, 0.0, "every operation was seen")
MISLEADING = Criterion("shattered gradients", "masking", role="misleading")
MASKED = MISLEADING.finding(0.1, 0.6, "gradients are shattered", fires=True, samples=("a", "b"))
MORE = replace(ENOUGH, figure=0.04, fires=True, statement="twice the budget takes 4.0 points")
UNSEEN = replace(SEEN, figure=1.0, fires=True, statement="a numpy detour could not be seen")
NOT_MEASURED = OPERATIONS.not_measured("could not be carried out")
NOTE = Criterion("randomness", "note").finding(0.2, 0.01, "predictions vary")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


def standing(store: Store, protocol: int, robust: int, right: int = 195, n: int = 200, classes: int = 10) -> Summary:
    """Of n samples `right` are classified correctly; `protocol` survive the protocol and `robust` the strong suite."""
    clean = "h" * right + "w" * (n - right)
    letters = {
        "clean": clean,
        "pgd": "h" * protocol + "b" * (right - protocol) + "w" * (n - right),
        "es": "h" * robust + "b" * (right - robust) + "w" * (n - right),
    }
    spec = {"protocol_attacks": ["pgd"]}
    evaluation = deterministic(
        store, letters, spec=spec, origin={"classes": classes}, model=f"net{protocol}-{robust}-{right}-{n}-{classes}"
    )
    return summaries(store, [evaluation])[0]


@pytest.mark.parametrize("check", ["state", "random answers"])
@pytest.mark.parametrize("robust", [10, 0])
def test_doubts_about_state_and_randomness_outrank_every_number(store: Store, check: str, robust: int) -> None:
    unstable = Criterion(check, "doubt", "a model that answers alike", role="unstable").finding(
        0.1, 0.0, "it answers otherwise"
    )
    result = verdict(standing(store, 150, robust), [ENOUGH, MASKED, unstable])
    assert result.conclusion == "inconclusive"
    assert result.reasons == (unstable,)
    assert result.would_settle == "a model that answers alike"
    calm = replace(unstable, figure=0.0, fires=False)
    assert verdict(standing(store, 150, robust), [ENOUGH, MASKED, calm]).conclusion == "overestimated"


def test_a_protocol_with_a_much_higher_accuracy_than_the_strongest_attacks_overestimates(store: Store) -> None:
    result = verdict(standing(store, 150, 10), [ENOUGH, MASKED, NOTE])
    assert result.conclusion == "overestimated"
    assert result.overestimate is not None
    assert result.overestimate.value == pytest.approx(0.7)
    assert result.overestimate.low > 0.6
    assert result.protocol == "pgd"
    assert result.reasons == (MASKED,)
    assert "70.0 points" in result.sentence()


@pytest.mark.parametrize(("protocol", "robust"), [(103, 100), (100, 100), (195, 195)])
def test_a_sound_model_under_a_sound_protocol_is_confirmed(store: Store, protocol: int, robust: int) -> None:
    result = verdict(standing(store, protocol, robust), [ENOUGH, SEEN, NOTE])
    assert result.conclusion == "confirmed"
    assert ENOUGH in result.reasons
    assert result.would_settle == ""


def test_masking_from_weak_attacks_alone_casts_no_doubt(store: Store) -> None:
    saturated = replace(MASKED, check="saturation", role="")
    result = verdict(standing(store, 100, 100), [ENOUGH, saturated])
    assert result.conclusion == "confirmed"
    assert "saturation" in result.sentence()


@pytest.mark.parametrize(
    "check", ["shattered gradients", "misleading gradients", "incoherent gradients", "averaged gradient noise", "plateaus"]
)
def test_misleading_gradients_are_inconclusive_if_other_attacks_gain_little(store: Store, check: str) -> None:
    result = verdict(standing(store, 101, 100), [ENOUGH, replace(MASKED, check=check)])
    assert (result.conclusion, result.reasons[-1].check) == ("inconclusive", "hidden gradients")
    assert f"gradients mislead ({check}), and attacks that do not rely on them gained little: 0.5" in result.sentence()
    assert "an attack designed for this model" in result.would_settle


def test_misleading_gradients_do_not_matter_for_a_robust_accuracy_of_at_most_one_point(store: Store) -> None:
    assert verdict(standing(store, 2, 2), [ENOUGH, MASKED]).conclusion == "confirmed"
    assert verdict(standing(store, 3, 3), [ENOUGH, MASKED]).conclusion == "inconclusive"


@pytest.mark.parametrize("doubt", [MORE, UNSEEN, NOT_MEASURED], ids=["budget", "unseen", "unfinished"])
def test_a_doubt_that_fires_or_could_not_be_measured_is_inconclusive(store: Store, doubt: Finding) -> None:
    findings = [finding for finding in (ENOUGH, SEEN) if finding.check != doubt.check]
    result = verdict(standing(store, 100, 100), [*findings, doubt])
    assert result.conclusion == "inconclusive"
    assert result.reasons == (doubt,)
    assert result.would_settle
    assert doubt.statement in result.sentence()


def test_the_remedies_of_a_verdict_include_that_of_each_doubt(store: Store) -> None:
    result = verdict(standing(store, 100, 100), [MORE, UNSEEN])
    assert "larger budget" in result.would_settle
    assert "operations that could not be seen" in result.would_settle


def test_without_a_larger_budget_tried_nothing_is_confirmed(store: Store) -> None:
    result = verdict(standing(store, 100, 100), [SEEN, NOTE])
    assert (result.conclusion, result.reasons[0].check) == ("inconclusive", "twice the budget")


def test_a_negligible_robust_accuracy_is_confirmed_despite_doubts(store: Store) -> None:
    assert verdict(standing(store, 0, 0), [MORE, NOT_MEASURED]).conclusion == "confirmed"
    assert verdict(standing(store, 1, 1), [MORE]).conclusion == "confirmed"
    assert verdict(standing(store, 190, 0), [ENOUGH]).conclusion == "overestimated"


def test_with_unseen_operations_a_negligible_accuracy_is_confirmed_only_if_the_protocol_finds_it_too(store: Store) -> None:
    assert verdict(standing(store, 2, 0), [ENOUGH, UNSEEN]).conclusion == "inconclusive"
    assert verdict(standing(store, 2, 0), [ENOUGH]).conclusion == "confirmed"
    assert verdict(standing(store, 0, 0), [ENOUGH, UNSEEN]).conclusion == "confirmed"
    assert verdict(standing(store, 190, 0), [ENOUGH, UNSEEN]).conclusion == "overestimated"


def test_a_constant_model_or_one_at_chance_is_degenerate(store: Store) -> None:
    assert verdict(standing(store, 24, 0, right=24), [ENOUGH]).conclusion == "degenerate"
    constant = Criterion("constant", "doubt", role="constant").finding(1.0, 1.0, "10 classes get 1 prediction", fires=True)
    result = verdict(standing(store, 100, 100, right=100), [ENOUGH, constant])
    assert (result.conclusion, result.reasons) == ("degenerate", (constant,))


def test_the_sentence_on_a_model_at_chance_holds_accuracy_and_chance(store: Store) -> None:
    below = verdict(standing(store, 20, 20, right=20), [ENOUGH])
    assert below.conclusion == "degenerate"
    assert "10.0 %, is not above chance, 10.0 %" in below.sentence()
    near = verdict(standing(store, 24, 24, right=24), [ENOUGH])
    assert near.conclusion == "degenerate"
    assert "12.0 %, cannot be told from chance, 10.0 %, and is at most 17.3 %" in near.sentence()


@pytest.mark.parametrize(("right", "classes"), [(12, 2), (4, 10)])
@pytest.mark.parametrize("robust", [3, 0])
def test_too_few_images_to_tell_a_model_from_chance_leave_it_open(store: Store, right: int, classes: int, robust: int) -> None:
    result = verdict(standing(store, robust, robust, right=right, n=16, classes=classes), [ENOUGH])
    assert (result.conclusion, result.would_settle) == ("inconclusive", "more images")
    shown = f"16 images are too few to tell the clean accuracy, {100 * right / 16:.1f} %, from chance, {100 / classes:.1f} %"
    assert shown in result.sentence()


def test_a_protocol_may_overestimate_despite_too_few_images_to_tell_the_model_from_chance(store: Store) -> None:
    result = verdict(standing(store, 12, 0, right=12, n=16, classes=2), [ENOUGH, MASKED])
    assert (result.conclusion, result.reasons[0]) == ("overestimated", MASKED)
    # With a little fewer wrong images, chance is excluded.
    assert verdict(standing(store, 13, 13, right=13, n=16, classes=2), [ENOUGH]).conclusion == "confirmed"


def test_a_gap_within_the_noise_of_a_small_slice_is_confirmed(store: Store) -> None:
    # Two of 32 samples are 6 points, which may be chance.
    assert verdict(standing(store, 20, 18, right=30, n=32), [ENOUGH]).conclusion == "confirmed"
    assert verdict(standing(store, 30, 2, right=30, n=32), [ENOUGH]).conclusion == "overestimated"


def test_the_one_sided_99_percent_end_decides(store: Store) -> None:
    words = [verdict(standing(store, 100 + gap, 100), [ENOUGH]).conclusion for gap in range(20)]
    assert words == sorted(words)  # confirmed before overestimated
    assert words[3] == "confirmed"
    assert words[12] == "overestimated"


def test_an_incomplete_evaluation_is_inconclusive(store: Store) -> None:
    evaluation = deterministic(store, {"clean": "hhhh", "pgd": "hheb"}, origin={"classes": 10})
    result = verdict(summaries(store, [evaluation])[0], [ENOUGH])
    assert (result.conclusion, result.overestimate) == ("inconclusive", None)
    assert "1 of 4 rows error" in result.sentence()


def test_another_protocol_may_be_compared_with_the_robust_accuracy(store: Store) -> None:
    mine = standing(store, 100, 100)
    values = np.array([1.0] * 180 + [0.0] * 20)
    result = verdict(mine, [ENOUGH], ("autoattack", values))
    assert (result.conclusion, result.protocol) == ("overestimated", "autoattack")


def test_the_overestimate_of_a_stochastic_model_is_a_difference_of_shares(store: Store) -> None:
    spec = specification(
        attacks=("clean", "pgd", "es"), n=60, stochastic=True, spec={"protocol_attacks": ["pgd"]}, origin={"classes": 10}
    )
    shares = {"clean": 95, "pgd": 78, "es": 30}
    rows = {label: drawn([correct] * 60, [correct] * 60) for label, correct in shares.items()}
    result = verdict(summaries(store, [record(store, spec, rows)])[0], [ENOUGH])
    assert result.conclusion == "overestimated"
    assert result.overestimate is not None
    assert result.overestimate.value == pytest.approx(0.48)


def test_an_evaluation_that_was_not_diagnosed_has_no_verdict(store: Store) -> None:
    assert verdict_on_record(standing(store, 150, 10)) is None
    assert verdict_json(None) is None


def test_json_holds_the_conclusion_its_reasons_and_the_caveat(store: Store) -> None:
    mine = standing(store, 100, 100)
    store.record_findings(mine.evaluation.id, [MORE])
    (mine,) = summaries(store)
    result = verdict_on_record(mine)
    assert result is not None
    answer = verdict_json(result)
    assert answer is not None
    assert (answer["verdict"], answer["caveat"]) == ("inconclusive", CAVEAT)
    assert answer["reasons"][0] == {
        "check": "twice the budget",
        "kind": "doubt",
        "fires": True,
        "figure": 0.04,
        "threshold": 0.01,
        "statement": "twice the budget takes 4.0 points",
        "samples": [],
    }
    assert set(answer) == {"verdict", "sentence", "protocol", "overestimate", "reasons", "would_settle", "bounds", "caveat"}
