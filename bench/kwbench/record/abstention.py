"""Models that may abstain: the robust accuracy if abstaining on an attacked image counts as right."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kwbench.outcome import Status
from kwbench.record.store import Store
from kwbench.statistics import accuracy_of_hits

if TYPE_CHECKING:
    from kwbench.record.summary import Summary


def with_excused(store: Store, summary: "Summary") -> "Summary":
    """Return a summary with the accuracy that excuses abstentions, if the model may abstain; otherwise as it is.

    A sample counts as right if the clean image is, and if every image that broke it made the model abstain. A_rob itself
    counts these as broken. The attacks stop at an abstention, so the accuracy is an upper bound that attacks which avoid
    abstentions would lower. Stochastic models have none, since each of their draws may abstain or not.
    """
    abstain_class = summary.evaluation.origin.get("abstain_class")
    if abstain_class is None or summary.stochastic or summary.robust_values is None or summary.clean_values is None:
        return summary
    beside = summary.evaluation.spec.spec.get("beside", ())
    evaded: set[int] = set()
    for attack in summary.attacks:
        if attack.name not in beside:
            outcomes = store.outcome_arrays(summary.evaluation.attack_runs[attack.name])
            broken = outcomes.status == Status.BROKEN[:1].encode()
            evaded |= set(outcomes.index[broken & (outcomes.prediction != abstain_class)].tolist())
    right = (summary.clean_values > 0) & ~np.isin(summary.index, sorted(evaded))
    return replace(summary, a_rob_excused=accuracy_of_hits(int(right.sum()), len(right)))
