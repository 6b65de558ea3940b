"""Certificates on record: for which samples of a model no image of the ball is misclassified."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kwbench.record.measurement import Measurement

if TYPE_CHECKING:
    from kwbench.record.summary import Summary

# The name of their measurements.
CERTIFICATE = "certificate"

# The parts of an evaluation's origin that a certificate depends on. The sample's hash stands for the image and its label.
_QUESTION = ("model_sha256", "entry", "prediction", "classes", "norm", "eps", "network", "answers")


@dataclass(frozen=True, slots=True)
class Bound:
    """The best lower bound of a sample's margin on record, NaN if a search gave none, and the most effort that was spent on it,
    in nominal seconds."""

    margin: float
    effort: float

    @property
    def certified(self) -> bool:
        """Whether no image of the ball is misclassified."""
        return self.margin > 0


Bounds = Mapping[str, Bound]
"""By sample."""


def question(origin: Mapping[str, Any]) -> str:
    """Return what identifies the model and the ball among certificates."""
    return json.dumps({key: origin.get(key) for key in _QUESTION}, sort_keys=True, default=str)


def bounds_by_question(measurements: Sequence[Measurement]) -> dict[str, Bounds]:
    """Return the bounds of all samples, by `question`."""
    by_question: dict[str, dict[str, Bound]] = {}
    for measurement in measurements:
        parameters = measurement.spec.get("parameters", {})
        # A budget of seconds is about as many nominal ones.
        effort = float(parameters.get("effort") or parameters.get("budget") or 0.0)
        known = by_question.setdefault(question(measurement.spec.get("origin", {})), {})
        for sample, margin in zip(measurement.spec.get("samples", []), measurement.arrays["bound"].tolist(), strict=True):
            before = known.get(sample)
            if before is None:
                known[sample] = Bound(margin, effort)
            else:
                better = margin if margin > before.margin or before.margin != before.margin else before.margin
                known[sample] = Bound(better, max(effort, before.effort))
    return dict(by_question)


def are_certified(samples: Sequence[str], bounds: Bounds) -> NDArray[np.bool_]:
    """Return whether each of the samples (n,) is certified, as (n,)."""
    known = [bounds.get(sample) for sample in samples]
    return np.array([bound is not None and bound.certified for bound in known], dtype=np.bool_)


def bounds_text(summary: "Summary") -> str:
    """Return the robust accuracy, in percent, between its bounds; "not certified" without certificates."""
    certified, robust = summary.a_certified, summary.a_rob
    if certified is None or robust is None:
        return "not certified"
    return f"certified {100 * certified.value:.1f} <= A_rob <= {100 * robust.value:.1f}"
