"""Robust accuracy at every radius from one run of minimum-norm attacks, whose proposals may lie at any distance."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwbench.errors import UsageError
from kwbench.outcome import Status
from kwbench.record.store import Store
from kwbench.record.summary import Summary
from kwbench.statistics import Interval, accuracy_of_hits
from kwbench.threat import TOLERANCE


@dataclass(frozen=True, slots=True)
class DistanceCurve:
    """How far the nearest adversarial image of each sample is.

    Attributes:
        summary: the evaluation.
        nearest: distance of the nearest adversarial image of each sample, in the norm of the threat model and the order of
            `summary.index`; 0 where the prediction of the clean image is wrong, infinity where no attack found one.
    """

    summary: Summary
    nearest: NDArray[np.float64] = field(repr=False)

    def accuracy(self, eps: float) -> Interval:
        """Return the robust accuracy at a radius, as the judge measures it in a run at this radius."""
        return accuracy_of_hits(int((self.nearest > eps + TOLERANCE).sum()), len(self.nearest))

    def radius(self, accuracy: float) -> float:
        """Return the smallest radius at which the robust accuracy is at most this; infinity if it never is."""
        ordered = np.sort(self.nearest)
        broken = int(np.ceil(round((1 - accuracy) * len(ordered), 9)))
        return float(ordered[broken - 1]) if broken else 0.0

    @property
    def radii(self) -> list[float]:
        """Every distance of an adversarial image, once, in ascending order: where the accuracy falls."""
        radii: list[float] = np.unique(self.nearest[(self.nearest > 0) & np.isfinite(self.nearest)]).tolist()
        return radii


def distance_curve(store: Store, summary: Summary) -> DistanceCurve:
    """Return the curve of an evaluation by minimum-norm attacks alone.

    Raises UsageError for a stochastic model, whose robustness no single image decides, and for an attack of another kind, which
    stops inside the ball that it was given.
    """
    if summary.stochastic:
        raise UsageError(f"--over eps: {summary.model} is stochastic; give radii, such as eps=2/255,8/255")
    nearest = np.full(len(summary.index), np.inf)
    places = {position: place for place, position in enumerate(summary.index.tolist())}
    for attack in summary.attacks:
        declared = attack.spec.spec.get("declared")
        if not (isinstance(declared, Mapping) and declared.get("minimum_norm")):
            raise UsageError(f"--over eps: {attack.name} is no minimum-norm attack; name such, deepfool or cw, or give radii")
        for outcome in store.outcomes(summary.evaluation.attack_runs[attack.name]):
            place = places[outcome.index]
            if outcome.status is Status.WRONG:
                nearest[place] = 0.0
            elif outcome.distance is not None:
                nearest[place] = min(nearest[place], outcome.distance)
    return DistanceCurve(summary, nearest)


def distance_curve_json(curve: DistanceCurve) -> dict[str, Any]:
    """Return as JSON values where the robust accuracy falls, and to what; and the distance of each sample, null for none."""
    return {
        "radii": curve.radii,
        "a_rob_at_radii": [curve.accuracy(radius).value for radius in curve.radii],
        "distances": [float(distance) if np.isfinite(distance) else None for distance in curve.nearest],
    }
