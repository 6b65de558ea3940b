"""The verdict about a model and a protocol, from numbers and findings that are made up, and what is said of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kwbench.finding import Finding
from kwbench.record.store import Store
from kwbench.record.summary import Summary, summaries
from kwbench.verdict import CAVEAT, verdict, verdict_json, verdict_on_record
from support.records import deterministic, drawn, record, specification

ENOUGH = Finding("twice the budget", 0.0, 0.01, False, "twice the budget takes 0.0 points", (), "doubt")
SEEN = Finding("unseen", 0.0, 0.0, False, "all was seen", (), "doubt")
MASKED = Finding("shattered gradients", 0.1, 0.6, True, "gradients are shattered", ("a", "b"), "masking")
MORE = replace(ENOUGH, figure=0.04, fires=True, statement="twice the budget takes 4.0 points")
UNSEEN = replace(SEEN, figure=1.0, fires=True, statement="a numpy detour could not be seen")
UNDONE = replace(SEEN, figure=None, statement="could not be carried out")
NOTE = Finding("randomness", 0.2, 0.01, True, "answers vary", (), "note")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


def standing(store: Store, protocol: int, robust: int, right: int = 195, n: int = 200, classes: int = 10) -> Summary:
    """Of n samples `right` are right, of which the protocol leaves some and the strong suite fewer."""
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


def test_a_protocol_that_leaves_much_more_than_the_strongest_attacks_overestimates(store: Store) -> None:
    found = verdict(standing(store, 150, 10), [ENOUGH, MASKED, NOTE])
    assert found.conclusion == "overestimated"
    assert found.overestimate is not None
    assert found.overestimate.value == pytest.approx(0.7)
    assert found.overestimate.low > 0.6
    assert found.protocol == "pgd"
    assert found.reasons == (MASKED,)
    assert "70.0 points" in found.sentence()


@pytest.mark.parametrize(("protocol", "robust"), [(103, 100), (100, 100), (195, 195)])
def test_a_sound_model_under_a_sound_protocol_is_confirmed(store: Store, protocol: int, robust: int) -> None:
    found = verdict(standing(store, protocol, robust), [ENOUGH, SEEN, NOTE])
    assert found.conclusion == "confirmed"
    assert ENOUGH in found.reasons
    assert found.would_settle == ""


def test_what_hides_gradients_from_weak_attacks_alone_does_not_call_a_number_in_question(store: Store) -> None:
    saturated = replace(MASKED, check="saturation")
    found = verdict(standing(store, 100, 100), [ENOUGH, saturated])
    assert found.conclusion == "confirmed"
    assert "saturation" in found.sentence()


@pytest.mark.parametrize(
    "check", ["shattered gradients", "misleading gradients", "incoherent gradients", "averaged gradient noise", "plateaus"]
)
def test_where_gradients_mislead_and_nothing_else_gained_nothing_is_confirmed(store: Store, check: str) -> None:
    found = verdict(standing(store, 101, 100), [ENOUGH, replace(MASKED, check=check)])
    assert (found.conclusion, found.reasons[-1].check) == ("inconclusive", "hidden gradients")
    assert f"gradients mislead ({check}), and no attack that goes by something else gained much, by 0.5" in found.sentence()
    assert "an attack made for this model" in found.would_settle


def test_where_gradients_mislead_but_a_point_or_less_is_left_it_cannot_be_much_too_high(store: Store) -> None:
    assert verdict(standing(store, 2, 2), [ENOUGH, MASKED]).conclusion == "confirmed"
    assert verdict(standing(store, 3, 3), [ENOUGH, MASKED]).conclusion == "inconclusive"


@pytest.mark.parametrize("doubt", [MORE, UNSEEN, UNDONE], ids=["budget", "unseen", "unfinished"])
def test_a_doubt_that_fires_or_an_unfinished_check_never_confirms(store: Store, doubt: Finding) -> None:
    findings = [each for each in (ENOUGH, SEEN) if each.check != doubt.check]
    found = verdict(standing(store, 100, 100), [*findings, doubt])
    assert found.conclusion == "inconclusive"
    assert found.reasons == (doubt,)
    assert found.would_settle
    assert doubt.statement in found.sentence()


def test_what_would_settle_it_names_the_doubt(store: Store) -> None:
    found = verdict(standing(store, 100, 100), [MORE, UNSEEN])
    assert "larger budget" in found.would_settle
    assert "operations that could not be seen" in found.would_settle


def test_without_twice_the_budget_nothing_is_confirmed(store: Store) -> None:
    found = verdict(standing(store, 100, 100), [SEEN, NOTE])
    assert (found.conclusion, found.reasons[0].check) == ("inconclusive", "twice the budget")


def test_where_nothing_is_left_nothing_can_be_too_high(store: Store) -> None:
    assert verdict(standing(store, 0, 0), [MORE, UNDONE]).conclusion == "confirmed"
    assert verdict(standing(store, 1, 1), [MORE]).conclusion == "confirmed"
    assert verdict(standing(store, 190, 0), [ENOUGH]).conclusion == "overestimated"


def test_what_cannot_be_seen_is_not_confirmed_because_nothing_is_left_unless_the_protocol_leaves_nothing(store: Store) -> None:
    assert verdict(standing(store, 2, 0), [ENOUGH, UNSEEN]).conclusion == "inconclusive"
    assert verdict(standing(store, 2, 0), [ENOUGH]).conclusion == "confirmed"
    assert verdict(standing(store, 0, 0), [ENOUGH, UNSEEN]).conclusion == "confirmed"
    assert verdict(standing(store, 190, 0), [ENOUGH, UNSEEN]).conclusion == "overestimated"


def test_a_model_at_chance_is_degenerate_whatever_else(store: Store) -> None:
    assert verdict(standing(store, 24, 0, right=24), [ENOUGH]).conclusion == "degenerate"
    constant = Finding("constant", 1.0, 1.0, True, "10 classes get 1 answer", (), "doubt")
    found = verdict(standing(store, 100, 100, right=100), [ENOUGH, constant])
    assert (found.conclusion, found.reasons) == ("degenerate", (constant,))


def test_a_model_at_chance_is_told_how_near(store: Store) -> None:
    below = verdict(standing(store, 20, 20, right=20), [ENOUGH])
    assert below.conclusion == "degenerate"
    assert "10.0 %, is not above chance, 10.0 %" in below.sentence()
    near = verdict(standing(store, 24, 24, right=24), [ENOUGH])
    assert near.conclusion == "degenerate"
    assert "12.0 %, cannot be told from chance, 10.0 %, and is at most 17.3 %" in near.sentence()


@pytest.mark.parametrize(("right", "classes"), [(12, 2), (4, 10)])
@pytest.mark.parametrize("robust", [3, 0])
def test_what_too_few_images_tell_from_chance_is_inconclusive(store: Store, right: int, classes: int, robust: int) -> None:
    found = verdict(standing(store, robust, robust, right=right, n=16, classes=classes), [ENOUGH])
    assert (found.conclusion, found.would_settle) == ("inconclusive", "more images")
    shown = f"16 images are too few to tell the accuracy on them, {100 * right / 16:.1f} %, from chance, {100 / classes:.1f} %"
    assert shown in found.sentence()


def test_a_protocol_may_overestimate_what_too_few_images_tell_from_chance(store: Store) -> None:
    found = verdict(standing(store, 12, 0, right=12, n=16, classes=2), [ENOUGH, MASKED])
    assert (found.conclusion, found.reasons[0]) == ("overestimated", MASKED)
    # With a little fewer images wrong nothing speaks of chance.
    assert verdict(standing(store, 13, 13, right=13, n=16, classes=2), [ENOUGH]).conclusion == "confirmed"


def test_a_small_slice_does_not_accuse(store: Store) -> None:
    # Two of 32 samples are 6 points, and chance.
    assert verdict(standing(store, 20, 18, right=30, n=32), [ENOUGH]).conclusion == "confirmed"
    assert verdict(standing(store, 30, 2, right=30, n=32), [ENOUGH]).conclusion == "overestimated"


def test_the_one_sided_99_percent_end_decides(store: Store) -> None:
    words = [verdict(standing(store, 100 + gap, 100), [ENOUGH]).conclusion for gap in range(20)]
    assert words == sorted(words)  # confirmed before overestimated
    assert words[3] == "confirmed"
    assert words[12] == "overestimated"


def test_an_incomplete_evaluation_is_inconclusive(store: Store) -> None:
    evaluation = deterministic(store, {"clean": "hhhh", "pgd": "hheb"}, origin={"classes": 10})
    found = verdict(summaries(store, [evaluation])[0], [ENOUGH])
    assert (found.conclusion, found.overestimate) == ("inconclusive", None)
    assert "1 of 4 rows error" in found.sentence()


def test_another_protocol_may_be_held_against_the_number(store: Store) -> None:
    mine = standing(store, 100, 100)
    values = np.array([1.0] * 180 + [0.0] * 20)
    found = verdict(mine, [ENOUGH], ("autoattack", values))
    assert (found.conclusion, found.protocol) == ("overestimated", "autoattack")


def test_a_stochastic_model_is_held_to_its_shares(store: Store) -> None:
    spec = specification(
        attacks=("clean", "pgd", "es"), n=60, stochastic=True, spec={"protocol_attacks": ["pgd"]}, origin={"classes": 10}
    )
    shares = {"clean": 95, "pgd": 78, "es": 30}
    rows = {label: drawn([each] * 60, [each] * 60) for label, each in shares.items()}
    found = verdict(summaries(store, [record(store, spec, rows)])[0], [ENOUGH])
    assert found.conclusion == "overestimated"
    assert found.overestimate is not None
    assert found.overestimate.value == pytest.approx(0.48)


def test_an_evaluation_that_was_not_diagnosed_has_no_verdict(store: Store) -> None:
    assert verdict_on_record(standing(store, 150, 10)) is None
    assert verdict_json(None) is None


def test_json_says_what_the_sentence_says_and_that_passing_is_no_proof(store: Store) -> None:
    mine = standing(store, 100, 100)
    store.record_findings(mine.evaluation.id, [MORE])
    (mine,) = summaries(store)
    found = verdict_on_record(mine)
    assert found is not None
    answer = verdict_json(found)
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
    assert set(answer) == {"verdict", "sentence", "protocol", "overestimate", "reasons", "would_settle", "caveat"}
