"""The worst case over several threat models (Tramer and Boneh 2019, arXiv:1904.13000), from one evaluation under each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwbench.errors import UsageError
from kwbench.outcome import CLEAN
from kwbench.record.cascade import align
from kwbench.record.results import interval_json
from kwbench.record.store import Store
from kwbench.record.summary import Summary
from kwbench.statistics import Interval, accuracy_of_hits, accuracy_of_values


@dataclass(frozen=True, slots=True)
class Joint:
    """The robust accuracy of a model against an adversary who may choose the threat model for each sample.

    Attributes:
        evaluations: the evaluation under each threat model; all of the same model and samples.
        a_rob: share of the samples that withstand all attacks under all threat models, a fraction of 1 with its 95 % interval.
            Of a stochastic model, the mean probability of a right prediction at the candidate that the selection draws chose
            among those of all threat models.
        a_certified: share of the samples that are certified under every threat model; None unless each has certificates.
        chosen: number of samples whose worst case lies in each threat model's ball, the first of several that are as bad;
            samples that withstand all, or that are wrong without an attack, count for none.
    """

    evaluations: tuple[Summary, ...]
    a_rob: Interval
    a_certified: Interval | None
    chosen: tuple[int, ...]


def joint(store: Store, evaluations: Sequence[Summary]) -> Joint | None:
    """Return the worst case over evaluations of one model under several threat models; None if one is not complete.

    Raises UsageError if they are not of the same model and samples.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if _subject(other) != _subject(first) or not np.array_equal(other.index, first.index):
            raise UsageError(f"joint robust accuracy: {first.model} and {other.model} are not one model on the same samples")
    values = [evaluation.robust_values for evaluation in evaluations if evaluation.robust_values is not None]
    if len(values) < len(evaluations):
        return None
    table = np.stack(values)
    worst = np.argmin([_selected(store, one) for one in evaluations] if first.stochastic else table, axis=0)
    reached = table[worst, np.arange(len(worst))]
    attacked = np.array([[label != CLEAN for label in one.worst] for one in evaluations])[worst, np.arange(len(worst))]
    certified = [one.certified for one in evaluations if one.certified is not None]
    whole = np.logical_and.reduce(certified) if len(certified) == len(evaluations) else None
    return Joint(
        evaluations=tuple(evaluations),
        a_rob=accuracy_of_values(reached) if first.stochastic else accuracy_of_hits(int(reached.sum()), len(reached)),
        a_certified=None if whole is None else accuracy_of_hits(int(whole.sum()), len(whole)),
        chosen=tuple(np.bincount(worst[attacked], minlength=len(evaluations)).tolist()),
    )


def _subject(summary: Summary) -> tuple[object, ...]:
    """Return what was evaluated: name and content of the model, its prediction rule, and the content of the data."""
    return summary.model, *(summary.evaluation.origin.get(part) for part in ("model_sha256", "prediction", "data_sha256"))


def _selected(store: Store, summary: Summary) -> NDArray[np.float64]:
    """Return the share of right selection draws at the worst candidate of each sample, which no fresh draw has chosen."""
    runs = summary.evaluation.attack_runs
    tallies = store.tallies(sorted({runs[label] for label in summary.worst}))
    selected, worst = np.full(len(summary.index), np.nan), np.array(summary.worst)
    for label in set(summary.worst):
        tally = tallies[runs[label]]
        rows = worst == label
        selected[rows] = align(summary.index, tally, tally.selection)[rows]
    return selected


def joint_json(whole: Joint) -> dict[str, Any]:
    """Return it as JSON values: accuracies as fractions of 1."""
    return {
        "threats": [
            {"threat": str(one.threat), "a_rob": interval_json(one.a_rob), "worst_case_of": count}
            for one, count in zip(whole.evaluations, whole.chosen, strict=True)
        ],
        "a_rob": interval_json(whole.a_rob),
        "a_certified": interval_json(whole.a_certified),
    }
