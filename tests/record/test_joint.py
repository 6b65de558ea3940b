"""The worst case over several threat models."""

from collections.abc import Sequence

import numpy as np
import pytest

from kwbench.errors import UsageError
from kwbench.outcome import Outcome
from kwbench.record.joint import Joint, joint
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from support.records import deterministic, drawn, record, specification


def _joint(store: Store) -> Joint:
    whole = joint(store, summaries(store))
    assert whole is not None
    return whole


def test_a_sample_counts_if_it_stands_under_every_threat_model(store: Store) -> None:
    deterministic(store, {"clean": "whhhhh", "pgd": "wbbhhh"}, norm="linf", eps="8/255")
    deterministic(store, {"clean": "whhhhh", "pgd": "whbbhh"}, norm="l2", eps="0.5")
    whole = _joint(store)
    assert (whole.a_rob.value, whole.a_certified) == (2 / 6, None)
    assert whole.chosen == (2, 1), "the wrong image counts for neither threat model"


def test_an_incomplete_evaluation_has_no_joint_accuracy(store: Store) -> None:
    deterministic(store, {"clean": "hh", "pgd": "hb"})
    deterministic(store, {"clean": "hh", "pgd": "h."}, norm="l2", eps="0.5")
    assert joint(store, summaries(store)) is None


@pytest.mark.parametrize("other", [{"checkpoint": "c1"}, {"model": "other"}, {"origin": {"data_sha256": "other"}}])
def test_evaluations_of_different_models_or_data_have_no_joint_accuracy(store: Store, other: dict[str, str]) -> None:
    deterministic(store, {"clean": "hh", "pgd": "hb"})
    deterministic(store, {"clean": "hh", "pgd": "hb"}, **({"norm": "l2", "eps": "0.5"} | other))
    with pytest.raises(UsageError, match="not one model on the same samples"):
        joint(store, summaries(store))


def _random(store: Store, norm: str, selection: Sequence[int], fresh: Sequence[int]) -> None:
    clean: list[Outcome] = drawn([100] * len(selection), [100] * len(selection))
    spec = specification(attacks=("clean", "eot"), n=len(selection), stochastic=True, norm=norm, eps="0.1")
    record(store, spec, {"clean": clean, "eot": drawn(selection, fresh)})


def test_selection_draws_choose_the_threat_model_and_fresh_draws_score_it(store: Store) -> None:
    _random(store, "linf", [40, 80], [50, 70])
    _random(store, "l2", [60, 30], [20, 90])
    whole = _joint(store)
    assert whole.a_rob.value == pytest.approx((0.5 + 0.9) / 2), "the smaller fresh share would be biased downwards"
    assert whole.chosen == (1, 1)


def test_a_random_model_that_no_attack_moves_loses_nothing_by_many_threat_models(store: Store) -> None:
    rng, p, n = np.random.default_rng(0), 0.87, 400
    for norm in ("linf", "l2", "l1"):
        _random(store, norm, rng.binomial(100, p, n).tolist(), rng.binomial(100, p, n).tolist())
    whole = _joint(store)
    assert whole.a_rob.low <= p <= whole.a_rob.high
