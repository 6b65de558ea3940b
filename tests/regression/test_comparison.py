"""Two models are compared on the same samples, or not at all."""

import json

import pytest

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.record.store import Store
from kwbench.regression.comparison import compare, comparison_json
from support.baselines import net
from support.records import deterministic


def test_compare_tests_both_ways_on_the_same_samples(store: Store) -> None:
    net(store, 0.6, checkpoint="a", model="a")
    net(store, 0.5, checkpoint="b", model="b")
    (comparison,) = compare(store, "a", "b")
    (other,) = compare(store, "b", "a")
    assert comparison.a_rob.difference == pytest.approx(0.1, abs=0.003)
    assert comparison.a_rob.p == other.a_rob.p < 1e-6
    assert comparison.a_rob.method == "exact McNemar, two-sided"
    assert comparison.a_rob_difference.low < 0.1 < comparison.a_rob_difference.high
    assert comparison.a_std.p == 1
    shown = json.loads(json.dumps(comparison_json([comparison]), allow_nan=False))
    assert shown[0]["a_rob"]["lost"] == 36


def test_compare_finds_no_difference_between_a_model_and_itself(store: Store) -> None:
    net(store, 0.6, checkpoint="a", model="a")
    (comparison,) = compare(store, "a", "a")
    assert comparison.a_rob.p == 1
    assert comparison.a_rob_difference.value == 0


def test_compare_refuses_unknown_incomplete_and_incomparable_models(store: Store) -> None:
    net(store, 0.6, checkpoint="a", model="resnet")
    net(store, 0.6, checkpoint="b", model="other-eps", eps="0.1")
    deterministic(store, {"clean": "h" * 360, "pgd": "h" * 3, "autoattack": ""}, model="incomplete")
    with pytest.raises(UsageError, match="did you mean"):
        compare(store, "resnet", "resnt")
    for name in ("other-eps", "incomplete"):
        with pytest.raises(CannotEvaluate, match="same samples"):
            compare(store, "resnet", name)
