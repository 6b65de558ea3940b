"""Robust accuracy at every radius, from the distances of minimum-norm attacks."""

from dataclasses import replace

import numpy as np
import pytest

from kwbench.errors import UsageError
from kwbench.outcome import Outcome, Status
from kwbench.record.evaluation import AttackSpec
from kwbench.record.minimum_norm import DistanceCurve, distance_curve, distance_curve_json
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from support.records import deterministic, record, rows, specification


def _at(*distances: float | None) -> list[Outcome]:
    """Return outcomes of a minimum-norm attack at radius 0.2, by the distance of each adversarial image; 0 is a wrong one."""
    letters = "".join("w" if far == 0 else "h" if far is None or far > 0.2 else "b" for far in distances)
    return [replace(row, distance=far) for row, far in zip(rows(letters), distances, strict=True)]


def _curve(store: Store, *attacks: list[Outcome]) -> DistanceCurve:
    n = len(attacks[0])
    spec = specification(attacks=("clean", *(f"a{number}" for number in range(len(attacks)))), n=n, eps="0.2")
    kinds = tuple(AttackSpec(one.label, one.identity, {**one.spec, "declared": {"minimum_norm": True}}) for one in spec.attacks)
    clean = rows("".join("w" if row.status is Status.WRONG else "h" for row in attacks[0]))
    outcomes = {"clean": clean} | {f"a{number}": list(found) for number, found in enumerate(attacks)}
    record(store, replace(spec, attacks=kinds), outcomes)
    return distance_curve(store, summaries(store)[0])


def test_the_nearest_adversarial_image_of_all_attacks_counts(store: Store) -> None:
    curve = _curve(store, _at(0, 0.1, 0.5, None), _at(0, 0.3, 0.25, None))
    assert curve.nearest.tolist() == [0.0, 0.1, 0.25, np.inf]
    assert curve.radii == [0.1, 0.25]
    assert [curve.accuracy(eps).value for eps in (0.05, 0.1, 0.2, 0.25, 9.0)] == [0.75, 0.5, 0.5, 0.25, 0.25]
    assert curve.accuracy(0.2) == curve.summary.a_rob
    assert distance_curve_json(curve) == {
        "radii": [0.1, 0.25],
        "a_rob_at_radii": [0.5, 0.25],
        "distances": [0.0, 0.1, 0.25, None],
    }


def test_a_radius_is_the_smallest_at_which_the_accuracy_has_fallen_so_far(store: Store) -> None:
    curve = _curve(store, _at(0, 0.1, 0.25, None))
    assert [curve.radius(accuracy) for accuracy in (1.0, 0.75, 0.5, 0.25, 0.1)] == [0.0, 0.0, 0.1, 0.25, np.inf]
    for accuracy in (0.5, 0.25):
        assert curve.accuracy(curve.radius(accuracy)).value <= accuracy < curve.accuracy(curve.radius(accuracy) - 1e-3).value


def test_attacks_that_stop_inside_the_ball_have_no_curve(store: Store) -> None:
    deterministic(store, {"clean": "hh", "pgd": "hb"})
    with pytest.raises(UsageError, match="pgd is no minimum-norm attack"):
        distance_curve(store, summaries(store)[0])


def test_random_models_have_no_curve(store: Store) -> None:
    record(store, specification(attacks=("clean",), stochastic=True), {"clean": rows("hhhh")})
    with pytest.raises(UsageError, match="is stochastic"):
        distance_curve(store, summaries(store)[0])
