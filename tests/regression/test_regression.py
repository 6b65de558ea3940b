"""A regression is found, chance is not called one, and what cannot be told is never called fine."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.record.comparability import attacks_key, comparison_key
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.regression.baseline import update_baseline
from kwbench.regression.comparison import compare, comparison_json
from kwbench.regression.gate import Decision, check, check_json, decide
from kwbench.regression.job_summary import append_summary, markdown_summary
from kwbench.regression.junit import write_junit
from support.records import deterministic, drawn, network, record, specification
from support.simulation import DETERMINISTIC, DROPS, STOCHASTIC, rates


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return tmp_path / "baseline.json"


def net(store: Store, rob: float, *, checkpoint: str, model: str = "net", **options: object) -> Evaluation:
    return network(store, model, 0.97, {"pgd": rob + 0.1, "autoattack": rob}, checkpoint=checkpoint, **options)  # type: ignore[arg-type]


def random_net(store: Store, shift: float, *, checkpoint: str, seed: int) -> Evaluation:
    rng = np.random.default_rng(seed)
    p = np.random.default_rng(0).beta(4, 2, 360)
    found = {
        label: drawn(rng.binomial(100, p * part), rng.binomial(100, p * part))
        for label, part in (("clean", 1), ("pgd", 0.9 - shift))
    }
    return record(store, specification("random", n=360, stochastic=True, checkpoint=checkpoint), found)


def test_no_change_is_fine(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    assert update_baseline(store, baseline) == ["net"]
    result = check(store, baseline)
    assert result.exit_code == 0
    assert result.models[0].decision is Decision.FINE


def test_another_tile_or_version_or_seed_is_compared_all_the_same(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    net(store, 0.6, checkpoint="old", origin={"tile": 32, "seed": 1, "versions": {"torch": "2.14.0"}})
    result = check(store, baseline)
    assert result.exit_code == 0
    assert len(store.evaluations()) == 2


def test_a_retrained_checkpoint_five_points_weaker_is_a_regression(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    net(store, 0.55, checkpoint="new")
    result = check(store, baseline)
    assert result.exit_code == 1
    (found,) = result.models
    assert found.decision is Decision.REGRESSION
    assert found.drop is not None
    assert found.test is not None
    assert found.drop.value == pytest.approx(0.05, abs=0.003)
    assert found.test.method == "exact McNemar, one-sided"


def test_the_newest_evaluation_counts_also_after_a_return_to_the_old_checkpoint(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    net(store, 0.5, checkpoint="new")
    assert check(store, baseline).exit_code == 1
    net(store, 0.6, checkpoint="old")
    assert check(store, baseline).exit_code == 0


def test_a_better_model_is_fine(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    net(store, 0.7, checkpoint="new")
    assert check(store, baseline).exit_code == 0


def test_a_drop_that_may_be_chance_cannot_be_told(store: Store, baseline: Path) -> None:
    letters = np.array(list("h" * 60 + "b" * 40))
    deterministic(store, {"clean": "h" * 100, "pgd": "".join(letters)}, checkpoint="old")
    update_baseline(store, baseline)
    letters[:3] = "b"
    letters[70] = "h"
    deterministic(store, {"clean": "h" * 100, "pgd": "".join(letters)}, checkpoint="new")
    result = check(store, baseline)
    assert result.exit_code == 3
    assert "may be chance" in result.models[0].reason


def test_a_drop_of_exactly_max_drop_is_tolerated_and_a_hair_more_is_not() -> None:
    before = np.ones(1000)
    after = before.copy()
    after[:10] = 0
    assert decide(before, after, max_drop=1.0, alpha=0.01)[0] is Decision.FINE
    after[10] = 0
    assert decide(before, after, max_drop=1.0, alpha=0.01)[0] is Decision.REGRESSION


def test_a_significant_drop_below_max_drop_is_fine() -> None:
    before = np.ones(1000)
    after = before.copy()
    after[:40] = 0
    assert decide(before, after, max_drop=5.0, alpha=0.01)[0] is Decision.FINE


def test_stochastic_models_are_compared_by_a_permutation_test(store: Store, baseline: Path) -> None:
    random_net(store, 0.0, checkpoint="old", seed=1)
    update_baseline(store, baseline)
    random_net(store, 0.0, checkpoint="same again", seed=2)
    assert check(store, baseline).exit_code == 0
    random_net(store, 0.1, checkpoint="worse", seed=3)
    result = check(store, baseline)
    assert result.exit_code == 1
    assert result.models[0].test is not None
    assert "permutation" in result.models[0].test.method


def test_a_missing_run_cannot_be_told(store: Store, baseline: Path, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    empty = Store.open(str(tmp_path / "empty.db"), create=True)
    result = check(empty, baseline)
    empty.close()
    assert result.exit_code == 3
    assert result.models[0].reason == "no evaluation on record"


def test_an_incomplete_newest_run_cannot_be_told_although_an_older_one_is_complete(store: Store, baseline: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, checkpoint="old")
    update_baseline(store, baseline)
    deterministic(store, {"clean": "hhhh", "pgd": "hhb."}, checkpoint="new")
    result = check(store, baseline)
    assert result.exit_code == 3
    assert "3 of 4 samples" in result.models[0].reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"n": 100}, "n is 100"),
        ({"eps": "0.1"}, "eps is 1/10"),
        ({"norm": "l2"}, "norm is l2"),
        ({"suite": "strong"}, "suite is strong"),
        ({"origin": {"data_sha256": "other"}}, "other data"),
        (
            {"attacks": {"clean": {}, "pgd": {"steps": 3}, "autoattack": {}}},
            "not comparable: pgd.steps is 3, the baseline's None",
        ),
        (
            {"attacks": {"clean": {}, "pgd": {"gradient": {"kind": "es"}}, "autoattack": {}}},
            "pgd.gradient.kind is es, the baseline's None",
        ),
        (
            {"attacks": {"clean": {}, "pgd": dict.fromkeys("abcde", 1), "autoattack": {}}},
            "pgd.c is 1, the baseline's None; and 2 more",
        ),
        (
            {"attacks": {"clean": {}, "pgd": {}, "autoattack": {}, "fgsm": {}}},
            "not comparable: fgsm is not among the baseline's attacks",
        ),
        ({"spec": {"protocol": [{"label": "pgd", "escalate": 2}]}}, "pgd.escalate is 2, the baseline's None"),
        ({"spec": {"cascade": True}}, "cascade is True"),
    ],
)
def test_what_is_not_comparable_cannot_be_told(
    store: Store, baseline: Path, tmp_path: Path, change: dict[str, object], word: str
) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    other = Store.open(str(tmp_path / "other.db"), create=True)
    net(other, 0.6, checkpoint="new", **change)
    result = check(other, baseline)
    other.close()
    assert result.exit_code == 3
    assert word in result.models[0].reason


def test_an_attack_that_is_no_more_is_named(store: Store, baseline: Path, tmp_path: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb", "fgsm": "hhhb"})
    update_baseline(store, baseline)
    other = Store.open(str(tmp_path / "other.db"), create=True)
    deterministic(other, {"clean": "hhhh", "pgd": "hhbb"})
    result = check(other, baseline)
    other.close()
    assert result.models[0].reason == "not comparable: fgsm is not among the attacks"


def resolved(store: Store, precision: str, *, rob: float = 0.6, **options: object) -> Evaluation:
    """An evaluation by a suite that leaves the precision open, which here became this."""
    protocol = [{"label": "pgd", "parameters": {"precision": "auto", "steps": 5}, "escalate": 1}, {"label": "autoattack"}]
    spec = {"protocol": protocol} if options.pop("defined", True) else {}
    attacks = {"clean": {}, "pgd": {"precision": precision, "steps": 5}, "autoattack": {}}
    return net(store, rob, attacks=attacks, spec=spec, **options)  # type: ignore[arg-type]


def test_what_a_suite_leaves_open_may_have_become_anything(store: Store, baseline: Path) -> None:
    resolved(store, "float32", checkpoint="old")
    update_baseline(store, baseline)
    resolved(store, "bfloat16", checkpoint="new")
    assert check(store, baseline).exit_code == 0
    resolved(store, "bfloat16", checkpoint="b", model="other", rob=0.5)
    (found,) = compare(store, "net", "other")
    assert found.a_rob.difference == pytest.approx(0.1, abs=0.003)


def test_what_a_suite_settles_or_does_not_tell_is_compared_as_it_was(store: Store) -> None:
    resolved(store, "float32", checkpoint="a", model="a", defined=False)
    resolved(store, "bfloat16", checkpoint="b", model="b", defined=False)
    with pytest.raises(CannotEvaluate, match="same suite"):
        compare(store, "a", "b")
    settled = [{"label": "pgd", "parameters": {"precision": "float32"}}]
    pair = [
        net(
            store,
            0.6,
            checkpoint=each,
            model=each,
            attacks={"clean": {}, "pgd": {"precision": each}, "autoattack": {}},
            spec={"protocol": settled},
        )
        for each in ("float32", "bfloat16")
    ]
    assert attacks_key(pair[0]) != attacks_key(pair[1])
    assert comparison_key(pair[0]) != comparison_key(pair[1])


def test_a_baseline_with_what_the_open_parameters_became_still_serves(store: Store, baseline: Path) -> None:
    evaluation = resolved(store, "float32", checkpoint="old")
    update_baseline(store, baseline)
    whole = json.loads(baseline.read_text())
    (entry,) = whole["entries"]
    entry["key"]["protocol"] = comparison_key(evaluation, resolved=True).protocol
    entry["attacks"] = hashlib.sha256(attacks_key(evaluation, resolved=True).encode()).hexdigest()
    assert '"float32"' in entry["key"]["protocol"]
    _rewrite(baseline, whole)
    assert check(store, baseline).exit_code == 0


def test_other_samples_cannot_be_told(store: Store, baseline: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"})
    update_baseline(store, baseline)
    # The same data by name and hash, but other samples: the rows themselves are believed.
    whole = json.loads(baseline.read_text())
    values = whole["entries"][0]["values"]
    values["0" * 32] = values.pop(next(iter(values)))
    _rewrite(baseline, whole)
    result = check(store, baseline)
    assert result.exit_code == 3
    assert "3 of 4" in result.models[0].reason


def test_a_regression_outweighs_what_cannot_be_told(store: Store, baseline: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        net(store, 0.6, checkpoint="old", model=name)
    update_baseline(store, baseline)
    other = Store.open(str(tmp_path / "other.db"), create=True)
    net(other, 0.6, checkpoint="old", model="a")
    net(other, 0.5, checkpoint="new", model="c")
    net(other, 0.5, checkpoint="new", model="d")
    result = check(other, baseline)
    only_b = check(other, baseline, models=["a", "b"])
    other.close()
    assert [each.decision for each in result.models] == [Decision.FINE, Decision.UNDECIDED, Decision.REGRESSION]
    assert result.exit_code == 1
    assert result.new == ("d",)
    assert only_b.exit_code == 3


def test_checking_nothing_is_not_fine(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    result = check(store, baseline, models=["other"])
    assert result.exit_code == 3
    assert "--update" in result.models[0].reason
    whole = json.loads(baseline.read_text())
    whole["entries"] = []
    _rewrite(baseline, whole)
    assert check(store, baseline).exit_code == 3


def _rewrite(path: Path, whole: dict[str, object]) -> None:
    lines = [json.dumps(row, sort_keys=True) for row in whole["entries"]]  # type: ignore[attr-defined]
    whole["sha256"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    path.write_text(json.dumps(whole))


def test_the_baseline_is_stable_and_keeps_other_models(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old", model="b")
    net(store, 0.6, checkpoint="old", model="a")
    update_baseline(store, baseline)
    before = baseline.read_bytes()
    update_baseline(store, baseline)
    assert baseline.read_bytes() == before
    net(store, 0.5, checkpoint="new", model="b")
    update_baseline(store, baseline, models=["b"])
    lines = baseline.read_text().splitlines()
    old = before.decode().splitlines()
    assert lines[1] == old[1]
    assert lines[2] != old[2]
    assert check(store, baseline).exit_code == 0
    assert set(os.listdir(baseline.parent)) == {"baseline.json", "results.db"}


def test_an_incomplete_evaluation_is_no_baseline(store: Store, baseline: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhb."})
    with pytest.raises(CannotEvaluate, match="incomplete"):
        update_baseline(store, baseline)
    assert not baseline.exists()


def test_an_unknown_model_is_no_baseline(store: Store, baseline: Path) -> None:
    with pytest.raises(CannotEvaluate, match="nothing is on record"):
        update_baseline(store, baseline)
    net(store, 0.6, checkpoint="old", model="resnet")
    with pytest.raises(UsageError, match="did you mean 'resnet'"):
        update_baseline(store, baseline, models=["resnt"])


def test_a_baseline_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="old")
    (tmp_path / "file").touch()
    with pytest.raises(CannotEvaluate, match="cannot be written"):
        update_baseline(store, tmp_path / "file" / "baseline.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CannotEvaluate, match="cannot be written"):
        update_baseline(store, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_missing_baseline_is_named(store: Store, baseline: Path) -> None:
    with pytest.raises(CannotEvaluate, match="no such baseline"):
        check(store, baseline)


def test_a_damaged_baseline_is_refused(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    good = baseline.read_bytes()
    damages = [b"", b"{}", b"[]", b"null", good[:-20], b"\xff" + good, good.replace(b": 1.0", b": 0.0", 1)]
    damages += [good.replace(b"kwbench baseline", b"something"), good.replace(b'"format": 1', b'"format": 2')]
    for damaged in damages:
        assert damaged != good
        baseline.write_bytes(damaged)
        with pytest.raises(DamagedData, match="damaged"):
            check(store, baseline)


@pytest.mark.parametrize(
    "options", [{"max_drop": -1}, {"max_drop": float("nan")}, {"alpha": 0}, {"alpha": 1}, {"max_drop": 101}]
)
def test_impossible_thresholds_are_refused(store: Store, baseline: Path, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        check(store, baseline, **options)  # type: ignore[arg-type]


# How often a check ends with exit code 1 / with exit code 3, in percent, by the drop in points; a drop of 0 shows false alarms.
# At n = 360, max_drop 1 point, alpha 0.01 and a baseline A_rob of 60 %. Churn, in points: for deterministic models, the samples
# that a retrained model loses, and gains, at no drop; for stochastic models (100 draws a sample), how far p moves either way.
# From 20,000 runs (2,000 if stochastic) of support/simulation.py. The README has the same table.
MEASURED = """\
| model | churn | drop 0 | 1 | 2 | 3 | 5 | 8 | 10 |
| :-- | --: | --: | --: | --: | --: | --: | --: | --: |
| deterministic | 0 | 0.0 / 0.0 | 7.1 / 41.1 | 57.9 / 35.4 | 91.7 / 7.9 | 99.9 / 0.1 | 100.0 / 0.0 | 100.0 / 0.0 |
| deterministic | 2 | 0.4 / 16.7 | 4.0 / 46.3 | 15.8 / 62.8 | 35.6 / 57.7 | 77.6 / 22.0 | 98.8 / 1.2 | 99.9 / 0.1 |
| deterministic | 5 | 0.6 / 26.7 | 2.7 / 47.1 | 8.0 / 62.8 | 18.3 / 67.5 | 50.3 / 47.4 | 88.8 / 11.1 | 97.4 / 2.6 |
| stochastic | 0 | 0.1 / 0.0 | 49.4 / 0.0 | 99.9 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
| stochastic | 10 | 0.7 / 0.1 | 49.2 / 1.8 | 99.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
| stochastic | 30 | 1.3 / 10.4 | 14.1 / 37.5 | 56.5 / 33.5 | 92.7 / 6.7 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
"""

HOSTILE = "</testcase>|<b>`x`\x00\u202e=1+1 @all [a](javascript:b)\n"


def test_junit_summary_and_json_carry_the_verdicts_and_stay_well_formed(store: Store, baseline: Path, tmp_path: Path) -> None:
    for name in ("fine", "worse", HOSTILE):
        net(store, 0.6, checkpoint="old", model=name)
    update_baseline(store, baseline)
    net(store, 0.5, checkpoint="new", model="worse")
    deterministic(store, {"clean": "h" * 360, "pgd": "", "autoattack": ""}, model=HOSTILE, checkpoint="new")
    result = check(store, baseline)
    assert result.exit_code == 1

    write_junit(result, tmp_path / "out" / "junit.xml")
    suite = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [[child.tag for child in case] for case in suite] == [["error"], [], ["failure"]]

    append_summary(result, tmp_path / "summary.md")
    append_summary(result, tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text()
    assert text == 2 * markdown_summary(result)
    table = [line for line in markdown_summary(result).splitlines() if line.startswith("|")]
    assert len(table) == 5
    # Column boundaries are the bars that are not escaped.
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    assert "<b>" not in text
    assert "@all" not in text
    assert "\x00" not in text
    assert "\u202e" not in text

    shown = json.loads(json.dumps(check_json(result), allow_nan=False))
    assert shown["exit_code"] == 1
    assert [each["verdict"] for each in shown["models"]] == ["could not tell", "fine", "regression"]


def test_a_summary_that_cannot_be_written_is_named(store: Store, baseline: Path, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    with pytest.raises(CannotEvaluate, match="summary"):
        append_summary(check(store, baseline), tmp_path)


def test_compare_tests_both_ways_on_the_same_samples(store: Store) -> None:
    net(store, 0.6, checkpoint="a", model="a")
    net(store, 0.5, checkpoint="b", model="b")
    (found,) = compare(store, "a", "b")
    (other,) = compare(store, "b", "a")
    assert found.a_rob.difference == pytest.approx(0.1, abs=0.003)
    assert found.a_rob.p == other.a_rob.p < 1e-6
    assert found.a_rob.method == "exact McNemar, two-sided"
    assert found.a_rob_difference.low < 0.1 < found.a_rob_difference.high
    assert found.a_std.p == 1
    shown = json.loads(json.dumps(comparison_json([found]), allow_nan=False))
    assert shown[0]["a_rob"]["lost"] == 36


def test_a_radius_is_written_as_in_every_table(store: Store, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="a", eps="0.05")
    update_baseline(store, tmp_path / "baseline.json")
    assert [each.threat for each in check(store, tmp_path / "baseline.json").models] == ["linf 0.05"]


def test_compare_finds_no_difference_between_a_model_and_itself(store: Store) -> None:
    net(store, 0.6, checkpoint="a", model="a")
    (found,) = compare(store, "a", "a")
    assert found.a_rob.p == 1
    assert found.a_rob_difference.value == 0


def test_compare_refuses_what_is_unknown_incomplete_or_not_comparable(store: Store) -> None:
    net(store, 0.6, checkpoint="a", model="resnet")
    net(store, 0.6, checkpoint="b", model="other-eps", eps="0.1")
    deterministic(store, {"clean": "h" * 360, "pgd": "h" * 3, "autoattack": ""}, model="incomplete")
    with pytest.raises(UsageError, match="did you mean"):
        compare(store, "resnet", "resnt")
    for name in ("other-eps", "incomplete"):
        with pytest.raises(CannotEvaluate, match="same samples"):
            compare(store, "resnet", name)


def _measured() -> dict[tuple[str, float, float], tuple[float, float]]:
    found = {}
    for line in MEASURED.splitlines()[2:]:
        kind, churn, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for drop, cell in zip(DROPS, cells, strict=True):
            one, three = (float(part) / 100 for part in cell.split("/"))
            found[kind, float(churn) / 100, drop] = (one, three)
    return found


@pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
def test_the_documented_false_alarms_and_power_are_those_of_the_check(kind: str) -> None:
    documented = _measured()
    runs = 400 if kind == "deterministic" else 100
    for churn in DETERMINISTIC if kind == "deterministic" else STOCHASTIC:
        for drop in DROPS[::2]:
            found = rates(kind, churn, drop, runs, seed=1)
            for verdict, share in zip((Decision.REGRESSION, Decision.UNDECIDED), documented[kind, churn, drop], strict=True):
                # Within what chance allows in one of ten thousand repetitions.
                low, high = stats.binom.ppf((5e-5, 1 - 5e-5), runs, np.clip(share, 5e-4, 1 - 5e-4)) / runs
                assert low <= found[verdict] <= high, (churn, drop, verdict)


def test_the_documented_false_alarms_are_few() -> None:
    assert all(one <= 0.02 for (_, _, drop), (one, _) in _measured().items() if drop == 0)


def test_the_baseline_survives_a_damaged_record_unharmed(store: Store, baseline: Path, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    before = baseline.read_bytes()
    with closing(sqlite3.connect(tmp_path / "results.db")) as connection:
        connection.execute("DROP TABLE outcomes")
        connection.commit()
    with pytest.raises((CannotEvaluate, DamagedData)):
        update_baseline(store, baseline)
    assert baseline.read_bytes() == before
