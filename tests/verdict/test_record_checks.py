"""Checks of the record on invented records: each check fires on its defect, and none on a sound record."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kwbench.finding import Finding
from kwbench.record.evaluation import AttackSpec, Evaluation
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.verdict.attack_groups import group_of
from kwbench.verdict.record_checks import examine_record
from support.records import deterministic, drawn, record, specification

EXACT: dict[str, Any] = {"gradient": {"kind": "exact"}, "steps": 40, "relative_step_size": 1 / 30}
RELAXED: dict[str, Any] = {"gradient": {"kind": "relaxed"}, "steps": 40}
ATTACKS: dict[str, dict[str, Any]] = {
    "clean": {},
    "fgsm": {"gradient": {"kind": "exact"}},
    "pgd": EXACT,
    "mim": RELAXED,
    "transfer": {"surrogate": "vgg11", "steps": 40},
    "square": {"steps": 5000},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


def findings_of(store: Store, evaluation: Evaluation) -> dict[str, Finding]:
    """Return the findings on an evaluation by name of check."""
    all_summaries = summaries(store)
    own = next(summary for summary in all_summaries if summary.evaluation.id == evaluation.id)
    outcomes = {label: store.outcomes(run) for label, run in evaluation.attack_runs.items()}
    others = [summary for summary in all_summaries if summary is not own]
    return {summary.check: summary for summary in examine_record(own, outcomes, others)}


def judged(store: Store, **letters: str) -> dict[str, Finding]:
    """Return the findings on 100 samples; attacks that are not given break nothing."""
    statuses = {label: letters.get(label, "h").ljust(100, "h") for label in ATTACKS}
    return findings_of(store, deterministic(store, statuses, attacks=ATTACKS))


def test_no_check_fires_on_a_sound_record(store: Store) -> None:
    by_check = judged(store, fgsm="b" * 20, pgd="b" * 40, mim="b" * 38, square="b" * 41, transfer="b" * 9)
    assert [finding for finding in by_check.values() if finding.fires] == []


@pytest.mark.parametrize(("label", "check"), [("square", "gradient-free"), ("mim", "softened"), ("transfer", "transfer")])
def test_attacks_that_break_more_than_exact_gradients_reveal_masking(store: Store, label: str, check: str) -> None:
    by_check = judged(store, pgd="b" * 40, **{label: "b" * 52})
    assert {name for name, finding in by_check.items() if finding.fires} == {check}
    assert by_check[check].figure == pytest.approx(0.12)
    assert by_check[check].kind == "masking"
    assert len(by_check[check].samples) == 12


@pytest.mark.parametrize("label", ["square", "transfer"])
@pytest.mark.parametrize(
    ("n", "gain", "doubtful"), [(24, 2, True), (48, 3, True), (64, 1, False), (24, 0, False), (100, 3, False)]
)
def test_on_few_samples_any_gain_without_gradients_is_a_doubt(
    store: Store, label: str, n: int, gain: int, doubtful: bool
) -> None:
    letters = {name: ("b" * (10 + gain * (name == label)) if name in ("pgd", label) else "").ljust(n, "h") for name in ATTACKS}
    finding = findings_of(store, deterministic(store, letters, attacks=ATTACKS)).get("small sample")
    assert (finding is not None and finding.fires) == doubtful
    assert finding is None or finding.kind == "doubt"


def test_answers_that_changed_when_asked_again_are_counted(store: Store) -> None:
    letters = dict.fromkeys(ATTACKS, "h" * 8)
    evaluation = deterministic(store, letters, attacks=ATTACKS)
    own = next(summary for summary in summaries(store) if summary.evaluation.id == evaluation.id)
    outcomes = {label: store.outcomes(run) for label, run in evaluation.attack_runs.items()}
    assert not any(finding.check == "random answers" for finding in examine_record(own, outcomes))
    outcomes["pgd"] = [replace(outcomes["pgd"][0], note="asked again: 3 of 20 answers are wrong"), *outcomes["pgd"][1:]]
    (finding,) = (finding for finding in examine_record(own, outcomes) if finding.check == "random answers")
    assert finding.fires
    assert finding.samples == (outcomes["pgd"][0].sample,)


def test_relaxed_gradients_are_exact_where_there_is_nothing_to_relax(store: Store) -> None:
    statuses = {
        label: ("b" * 52 if label == "mim" else "b" * 40 if label == "pgd" else "h").ljust(100, "h") for label in ATTACKS
    }
    evaluation = deterministic(store, statuses, attacks=ATTACKS)
    outcomes = {label: store.outcomes(run) for label, run in evaluation.attack_runs.items()}
    checks = {finding.check for finding in examine_record(summaries(store)[0], outcomes, relaxes=False)}
    assert "softened" not in checks
    assert "gradient-free" in checks


def test_two_samples_are_chance_whatever_their_share(store: Store) -> None:
    attacks = {label: ATTACKS[label] for label in ("clean", "pgd", "square")}
    few = deterministic(store, {"clean": "h" * 20, "pgd": "h" * 20, "square": "bb" + "h" * 18}, attacks=attacks)
    assert not findings_of(store, few)["gradient-free"].fires


def test_only_samples_on_which_exact_gradients_were_tried_count(store: Store) -> None:
    attacks = {label: ATTACKS[label] for label in ("clean", "square", "pgd")}
    letters = {"clean": "h" * 100, "square": "b" * 60 + "h" * 40, "pgd": "." * 60 + "h" * 40}
    cascade = deterministic(store, letters, attacks=attacks, spec={"cascade": True})
    assert findings_of(store, cascade)["gradient-free"].figure == 0


def test_a_single_step_that_beats_forty_fires(store: Store) -> None:
    everything = judged(store, fgsm="b" * 30, pgd="h" * 10 + "b" * 30)
    assert everything["single step on record"].fires
    assert everything["single step on record"].figure == pytest.approx(0.10)


def test_errors_and_invalid_rows_are_a_doubt(store: Store) -> None:
    failures = judged(store, pgd="bbeei")["failures"]
    assert (failures.fires, failures.kind, len(failures.samples)) == (True, "doubt", 3)


def test_a_model_with_one_prediction_for_all_images_is_constant(store: Store) -> None:
    spec = specification(attacks=("clean", "pgd"), n=20)
    same = [outcome.__class__(**{**_fields(outcome), "clean_prediction": 3}) for outcome in drawn([50] * 20, [90] * 20)]
    assert findings_of(store, record(store, spec, {"clean": same, "pgd": same}))["constant"].fires
    assert not judged(store)["constant"].fires


def _fields(outcome: Any) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}


def test_a_last_doubling_that_still_breaks_samples_is_a_doubt(store: Store) -> None:
    attacks: dict[str, dict[str, Any]] = {"clean": {}, "pgd": EXACT, "es": {}, "es x2": {}, "es x4": {}}
    letters = {
        "clean": "h" * 100,
        "pgd": "h" * 100,
        "es": "b" * 20 + "h" * 80,
        "es x2": "." * 20 + "bbbbb" + "h" * 75,
    }
    spec: dict[str, Any] = {"cascade": True}
    settled = deterministic(store, letters | {"es x4": "." * 25 + "h" * 75}, attacks=attacks, spec=spec, model="settled")
    going_on = deterministic(store, letters | {"es x4": "." * 25 + "bbbb" + "h" * 71}, attacks=attacks, spec=spec)
    assert (findings_of(store, settled)["escalation"].fires, findings_of(store, settled)["escalation"].figure) == (False, 0)
    last = findings_of(store, going_on)["escalation"]
    assert (last.fires, last.kind, len(last.samples)) == (True, "doubt", 4)
    assert last.figure == pytest.approx(0.04)
    assert "es x4" in last.statement


def test_without_doublings_on_record_there_is_no_finding_on_them(store: Store) -> None:
    assert "escalation" not in judged(store)


def test_stochastic_models_are_compared_by_fresh_draws_of_the_chosen_candidate(store: Store) -> None:
    attacks = {label: ATTACKS[label] for label in ("clean", "pgd", "square")}
    spec = specification(attacks=attacks, n=50, stochastic=True)
    clean, held, broken = (drawn([rate] * 50, [rate] * 50) for rate in (95, 80, 20))
    masked = findings_of(store, record(store, spec, {"clean": clean, "pgd": held, "square": broken}))
    assert masked["gradient-free"].figure == pytest.approx(0.6)
    assert masked["gradient-free"].fires
    # Lower by chance on the selection draws only; fresh draws correct this.
    lucky = drawn([75] * 50, [80] * 50)
    spec = specification("lucky", attacks=attacks, n=50, stochastic=True)
    assert findings_of(store, record(store, spec, {"clean": clean, "pgd": held, "square": lucky}))["gradient-free"].figure == 0


def test_steps_that_cannot_cross_the_ball_fire(store: Store) -> None:
    attacks: dict[str, dict[str, Any]] = {"clean": {}, "pgd": {"steps": 10, "step_size": 0.002}, "mim": EXACT}
    short = findings_of(store, deterministic(store, {"clean": "hhh", "pgd": "hhh", "mim": "hhh"}, attacks=attacks))["reach"]
    assert short.fires
    assert short.figure == pytest.approx(0.02 * 255 / 8, abs=1e-5)
    assert not judged(store)["reach"].fires


def test_accuracy_above_the_best_known_is_a_doubt(store: Store) -> None:
    for right, fires in ((195, True), (140, False)):
        letters = {"clean": "h" * 200, "pgd": "h" * right + "b" * (200 - right)}
        one = deterministic(store, letters, attacks={"clean": {}, "pgd": EXACT}, dataset="cifar10", model=f"net{right}")
        best = findings_of(store, one)["best known"]
        assert (best.fires, best.kind, best.threshold) == (fires, "doubt", 0.7371)


def test_smaller_balls_than_in_the_table_and_unknown_data_sets_have_no_best_known(store: Store) -> None:
    letters = {"clean": "hhhh", "pgd": "hhhh"}
    small = deterministic(store, letters, dataset="cifar10", eps="4/255")
    assert "best known" not in findings_of(store, small)
    assert "best known" not in judged(store)


def test_a_model_far_above_its_relu_twin_is_a_doubt(store: Store) -> None:
    for name, right in (("resnet18-relu-at", 60), ("resnet18-kwta0.1-at", 80), ("resnet18-lwta0.2-at", 63)):
        letters = {"clean": "h" * 100, "pgd": "h" * right + "b" * (100 - right)}
        deterministic(store, letters, attacks={"clean": {}, "pgd": EXACT}, model=name)
    by_name = {evaluation.spec.model: evaluation for evaluation in store.evaluations()}
    assert findings_of(store, by_name["resnet18-kwta0.1-at"])["twin"].fires
    assert not findings_of(store, by_name["resnet18-lwta0.2-at"])["twin"].fires
    assert "twin" not in findings_of(store, by_name["resnet18-relu-at"])


def test_a_model_under_another_threat_is_no_twin(store: Store) -> None:
    for name, eps in (("resnet18-relu-at", "4/255"), ("resnet18-slwta2-at", "8/255")):
        mine = deterministic(store, {"clean": "hhhh", "pgd": "hhhh"}, model=name, eps=eps)
    assert "twin" not in findings_of(store, mine)


@pytest.mark.parametrize(
    ("attack", "parameters", "group"),
    [
        ("pgd", {"gradient": {"kind": "exact"}}, "exact"),
        ("apgd", {"gradient": {"kind": "eot", "draws": 20}}, "exact"),
        ("deepfool", {}, "exact"),
        ("pgd", {"gradient": {"kind": "relaxed"}}, "softened"),
        ("pgd", {"gradient": {"kind": "smooth"}}, "softened"),
        ("apgd", {"gradient": {"kind": "es"}}, "gradient-free"),
        ("rays", {}, "gradient-free"),
        ("transfer", {"gradient": {"kind": "exact"}}, "transfer"),
        ("autoattack", {"version": "standard"}, None),
        ("autoattack", {"version": "rand"}, "exact"),
        ("noop", {}, None),
    ],
)
def test_attacks_of_earlier_versions_are_grouped_by_name(attack: str, parameters: dict[str, Any], group: str | None) -> None:
    assert group_of(AttackSpec("label", "0", {"attack": attack, "parameters": parameters})) == group


@pytest.mark.parametrize(
    ("declared", "relaxes", "group"),
    [
        ({"evidence_group": "gradient-free", "relaxes": False}, True, "gradient-free"),
        ({"evidence_group": "softened", "relaxes": True}, True, "softened"),
        ({"evidence_group": "softened", "relaxes": True}, False, "exact"),
        ({"evidence_group": None, "relaxes": False}, True, None),
    ],
)
def test_attacks_are_grouped_by_what_they_declare(declared: dict[str, Any], relaxes: bool, group: str | None) -> None:
    spec = AttackSpec("label", "0", {"attack": "pgd", "parameters": {}, "declared": declared})
    assert group_of(spec, relaxes=relaxes) == group
