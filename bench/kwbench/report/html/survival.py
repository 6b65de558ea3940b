"""How much accuracy is left after so many passes: a curve for each attack of an evaluation."""

from collections.abc import Mapping

import numpy as np

from kwbench.formatting import plain
from kwbench.outcome import CLEAN, Status
from kwbench.record.arrays import OutcomeArrays
from kwbench.record.cascade import cascaded_attacks
from kwbench.record.measurement import Array
from kwbench.record.summary import Summary

# Steps of a curve at most.
_STEPS = 100
_BROKEN = Status.BROKEN[:1].encode()

# The name of an attack, numbers of passes, and the accuracy in percent from each of them to the next.
Curve = tuple[str, list[int], list[float]]


def survival_curves(outcomes: Mapping[str, OutcomeArrays], summary: Summary) -> list[Curve]:
    """Return the accuracy of all samples against the passes spent on each, an entry for each attack that declares passes.

    A curve falls at the passes after which a sample broke; for a stochastic model, whose samples all get the whole budget, at
    the end of the attack. In a cascade, an attack goes on from the passes and the accuracy that the attacks before it left.
    """
    if summary.a_std is None:
        return []
    cascaded = cascaded_attacks(summary.evaluation.spec)
    standing, spent = summary.a_std.value, 0
    curves: list[Curve] = []
    for attack in summary.attacks:
        rows = outcomes.get(attack.name)
        if rows is None or attack.name == CLEAN:
            continue
        in_cascade = attack.name in cascaded
        left = attack.remaining if in_cascade else attack.accuracy
        passes = rows.forwards + rows.backwards
        if passes.max() < 1 or left is None:
            continue
        before, start = (standing, spent) if in_cascade else (summary.a_std.value, 0)
        end = start + int(passes.max())
        broken = np.array([]) if summary.stochastic else passes[rows.status == _BROKEN]
        x, y = _curve(np.sort(broken) + start, summary.n, (start, before), (end, left.value))
        curves.append((plain(attack.name), x.astype(int).tolist(), y.round(2).tolist()))
        if in_cascade:
            standing, spent = left.value, end
    return curves


def _curve(broken: Array, n: int, start: tuple[int, float], end: tuple[int, float]) -> tuple[Array, Array]:
    """Return the steps from one point (passes, accuracy) to another; `broken` are the passes at which samples broke."""
    places, counts = np.unique(broken, return_counts=True)
    left = start[1] - np.cumsum(counts) / n
    if len(places) > _STEPS:
        kept = np.unique(np.linspace(0, len(places) - 1, _STEPS).round().astype(int))
        places, left = places[kept], left[kept]
    x = np.array([max(1, start[0]), *places, end[0]])
    return x, 100 * np.array([start[1], *left, end[1]])
