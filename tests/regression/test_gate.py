"""A regression is detected, chance is not called one, and an undecided model never passes."""

import json
from pathlib import Path

import numpy as np
import pytest

from kwbench.errors import UsageError
from kwbench.record.store import Store
from kwbench.regression.baseline import update_baseline
from kwbench.regression.gate import Decision, check, decide
from support.baselines import net, random_net, rewrite
from support.records import deterministic


def test_no_change_is_fine(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    assert update_baseline(store, baseline) == ["net"]
    result = check(store, baseline)
    assert result.exit_code == 0
    assert result.models[0].decision is Decision.FINE


def test_a_retrained_checkpoint_five_points_weaker_is_a_regression(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    net(store, 0.55, checkpoint="new")
    result = check(store, baseline)
    assert result.exit_code == 1
    (model,) = result.models
    assert model.decision is Decision.REGRESSION
    assert model.drop is not None
    assert model.test is not None
    assert model.drop.value == pytest.approx(0.05, abs=0.003)
    assert model.test.method == "exact McNemar, one-sided"


def test_after_a_return_to_the_old_checkpoint_its_evaluation_is_the_newest(store: Store, baseline: Path) -> None:
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


def test_a_drop_that_may_be_chance_is_undecided(store: Store, baseline: Path) -> None:
    letters = np.array(list("h" * 60 + "b" * 40))
    deterministic(store, {"clean": "h" * 100, "pgd": "".join(letters)}, checkpoint="old")
    update_baseline(store, baseline)
    letters[:3] = "b"
    letters[70] = "h"
    deterministic(store, {"clean": "h" * 100, "pgd": "".join(letters)}, checkpoint="new")
    result = check(store, baseline)
    assert result.exit_code == 3
    assert "may be chance" in result.models[0].reason


def test_a_drop_of_exactly_max_drop_is_tolerated_and_one_sample_more_is_not() -> None:
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


def test_a_model_without_evaluation_is_undecided(store: Store, baseline: Path, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    empty = Store.open(str(tmp_path / "empty.db"), create=True)
    result = check(empty, baseline)
    empty.close()
    assert result.exit_code == 3
    assert result.models[0].reason == "no evaluation on record"


def test_an_incomplete_newest_evaluation_is_undecided_although_an_older_one_is_complete(store: Store, baseline: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhbb"}, checkpoint="old")
    update_baseline(store, baseline)
    deterministic(store, {"clean": "hhhh", "pgd": "hhb."}, checkpoint="new")
    result = check(store, baseline)
    assert result.exit_code == 3
    assert "3 of 4 samples" in result.models[0].reason


def test_a_regression_outweighs_undecided_models(store: Store, baseline: Path, tmp_path: Path) -> None:
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
    assert [model.decision for model in result.models] == [Decision.FINE, Decision.UNDECIDED, Decision.REGRESSION]
    assert result.exit_code == 1
    assert result.new == ("d",)
    assert only_b.exit_code == 3


def test_checking_nothing_is_not_fine(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    result = check(store, baseline, models=["other"])
    assert result.exit_code == 3
    assert "--update" in result.models[0].reason
    content = json.loads(baseline.read_text())
    content["entries"] = []
    rewrite(baseline, content)
    assert check(store, baseline).exit_code == 3


@pytest.mark.parametrize(
    "options", [{"max_drop": -1}, {"max_drop": float("nan")}, {"alpha": 0}, {"alpha": 1}, {"max_drop": 101}]
)
def test_impossible_thresholds_are_refused(store: Store, baseline: Path, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        check(store, baseline, **options)  # type: ignore[arg-type]
