"""Differences that prevent a comparison with the baseline are named; evaluations with other differences are compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from kwbench.errors import CannotEvaluate
from kwbench.record.comparability import attacks_key, comparison_key
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.regression.baseline import update_baseline
from kwbench.regression.comparison import compare
from kwbench.regression.gate import check
from support.baselines import net, rewrite
from support.records import deterministic


def test_evaluations_with_other_tile_version_or_seed_are_compared(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    net(store, 0.6, checkpoint="old", origin={"tile": 32, "seed": 1, "versions": {"torch": "2.14.0"}})
    result = check(store, baseline)
    assert result.exit_code == 0
    assert len(store.evaluations()) == 2


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
def test_an_evaluation_that_is_not_comparable_is_undecided_and_the_difference_named(
    store: Store, baseline: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    other = Store.open(str(tmp_path / "other.db"), create=True)
    net(other, 0.6, checkpoint="new", **change)
    result = check(other, baseline)
    other.close()
    assert result.exit_code == 3
    assert word in result.models[0].reason


def test_an_attack_that_was_removed_is_named(store: Store, baseline: Path, tmp_path: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb", "fgsm": "hhhb"})
    update_baseline(store, baseline)
    other = Store.open(str(tmp_path / "other.db"), create=True)
    deterministic(other, {"clean": "hhhh", "pgd": "hhbb"})
    result = check(other, baseline)
    other.close()
    assert result.models[0].reason == "not comparable: fgsm is not among the attacks"


def resolved(store: Store, precision: str, *, rob: float = 0.6, **options: object) -> Evaluation:
    """Record an evaluation by a suite with `precision: auto`, which took this value."""
    protocol = [{"label": "pgd", "parameters": {"precision": "auto", "steps": 5}, "escalate": 1}, {"label": "autoattack"}]
    spec = {"protocol": protocol} if options.pop("defined", True) else {}
    attacks = {"clean": {}, "pgd": {"precision": precision, "steps": 5}, "autoattack": {}}
    return net(store, rob, attacks=attacks, spec=spec, **options)  # type: ignore[arg-type]


def test_auto_parameters_may_have_taken_different_values(store: Store, baseline: Path) -> None:
    resolved(store, "float32", checkpoint="old")
    update_baseline(store, baseline)
    resolved(store, "bfloat16", checkpoint="new")
    assert check(store, baseline).exit_code == 0
    resolved(store, "bfloat16", checkpoint="b", model="other", rob=0.5)
    (comparison,) = compare(store, "net", "other")
    assert comparison.a_rob.difference == pytest.approx(0.1, abs=0.003)


def test_parameters_that_the_suite_fixes_or_does_not_define_must_agree(store: Store) -> None:
    resolved(store, "float32", checkpoint="a", model="a", defined=False)
    resolved(store, "bfloat16", checkpoint="b", model="b", defined=False)
    with pytest.raises(CannotEvaluate, match="same suite"):
        compare(store, "a", "b")
    settled = [{"label": "pgd", "parameters": {"precision": "float32"}}]
    pair = [
        net(
            store,
            0.6,
            checkpoint=precision,
            model=precision,
            attacks={"clean": {}, "pgd": {"precision": precision}, "autoattack": {}},
            spec={"protocol": settled},
        )
        for precision in ("float32", "bfloat16")
    ]
    assert attacks_key(pair[0]) != attacks_key(pair[1])
    assert comparison_key(pair[0]) != comparison_key(pair[1])


def test_a_baseline_that_holds_the_values_of_auto_parameters_is_accepted(store: Store, baseline: Path) -> None:
    evaluation = resolved(store, "float32", checkpoint="old")
    update_baseline(store, baseline)
    content = json.loads(baseline.read_text())
    (entry,) = content["entries"]
    entry["key"]["protocol"] = comparison_key(evaluation, resolved=True).protocol
    entry["attacks"] = hashlib.sha256(attacks_key(evaluation, resolved=True).encode()).hexdigest()
    assert '"float32"' in entry["key"]["protocol"]
    rewrite(baseline, content)
    assert check(store, baseline).exit_code == 0


def test_other_samples_are_undecided(store: Store, baseline: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"})
    update_baseline(store, baseline)
    # Name and hash of the data agree, but the samples differ: the rows decide.
    content = json.loads(baseline.read_text())
    values = content["entries"][0]["values"]
    values["0" * 32] = values.pop(next(iter(values)))
    rewrite(baseline, content)
    result = check(store, baseline)
    assert result.exit_code == 3
    assert "3 of 4" in result.models[0].reason
