"""Certificates on record: for which samples of a model no image of the ball is misclassified."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from kwbench.outcome import CLEAN
from kwbench.record.measurement import Measurement
from kwbench.statistics import binomial_interval
from kwbench.threat import ThreatModel

if TYPE_CHECKING:
    from kwbench.record.store import Store
    from kwbench.record.summary import Summary

# The name of their measurements.
CERTIFICATE = "certificate"
# Those of models with Gaussian noise on their input, and the confidence of their bounds.
GAUSSIAN = "gaussian certificate"
CONFIDENCE = 0.999

# The parts of an evaluation's origin that identify the model, and those that a certificate depends on. The sample's hash
# stands for the image and its label.
_MODEL = ("model_sha256", "entry", "prediction", "classes", "network", "answers")
_QUESTION = (*_MODEL, "norm", "eps")


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
    return _digest(origin, _QUESTION)


def model_asked(origin: Mapping[str, Any]) -> str:
    """Return what identifies the model alone."""
    return _digest(origin, _MODEL)


def _digest(origin: Mapping[str, Any], keys: Sequence[str]) -> str:
    return json.dumps({key: origin.get(key) for key in keys}, sort_keys=True, default=str)


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


def with_certificates(store: "Store", summarized: "list[Summary]") -> "list[Summary]":
    """Return the summaries, those of models with certificates on record with what is certified."""
    certificates = bounds_by_question(store.experiments(of=CERTIFICATE))
    draws = {
        (question(measurement.spec.get("origin", {})), sample): (hits, n)
        for measurement in store.experiments(of=GAUSSIAN)
        for sample, hits, n in zip(
            measurement.spec.get("samples", []),
            measurement.arrays["correct"].tolist(),
            measurement.arrays["draws"].tolist(),
            strict=True,
        )
    }
    asked = {key for key, _ in draws}

    def certified(one: "Summary") -> "Summary":
        key = question(one.evaluation.origin)
        if one.clean is None or key not in (asked if one.stochastic else certificates):
            return one
        by_index = {outcome.index: outcome.sample for outcome in store.outcomes(one.evaluation.attack_runs[CLEAN])}
        samples = [by_index[index] for index in one.index.tolist()]
        if not one.stochastic:
            flags = are_certified(samples, certificates[key])
            return replace(one, certified=flags) if flags.any() else one
        counts = np.array([draws.get((key, sample), (0, 1)) for sample in samples])
        values = gaussian_bounds(counts, one.threat, one.evaluation.origin)
        return replace(one, certified_values=values) if values is not None and values.any() else one

    return [certified(one) for one in summarized] if certificates or draws else summarized


def gaussian_bounds(counts: NDArray[np.float64], threat: ThreatModel, origin: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Return lower bounds (n,) of the probabilities of right predictions in an l2 ball, jointly at CONFIDENCE.

    `counts` (n, 2) are right predictions among single draws of a model with Gaussian noise of sigma on its input. The
    probability of a right draw changes with the noise's mean by at most Phi(Phi^-1(p) - eps / sigma): the lemma of Neyman and
    Pearson (Cohen et al. 2019, arXiv:1902.02918; Salman et al. 2019, arXiv:1906.04584). A vote of several draws is right if
    most of them are. None for other rules, whose certified radius is that of a vote of infinitely many draws.
    """
    rule, entry = origin.get("prediction") or {}, origin.get("entry") or {}
    sigma = entry.get("smoothing") if isinstance(entry, Mapping) else None
    if threat.norm != "l2" or not sigma or rule.get("kind", "draw") not in ("draw", "vote"):
        return None
    hits, draws = counts.T
    # One-sided, for all samples together.
    low = binomial_interval(hits, draws, 1 - 2 * (1 - CONFIDENCE) / len(counts))[0]
    single = special.ndtr(special.ndtri(low) - threat.radius / float(sigma))
    votes = int(rule.get("draws", 1))
    bounds: NDArray[np.float64] = special.bdtrc(votes // 2, votes, single)
    return bounds
