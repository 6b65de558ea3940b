"""Adversarial images on record as arrays, for other tools."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwbench.errors import CannotEvaluate, UsageError, did_you_mean
from kwbench.outcome import CLEAN
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary


def find_evaluation(store: Store, name: str) -> Summary:
    """Return the evaluation whose identity begins with `name`, or else the newest one of the model of this name.

    Raises UsageError if there is none, or if several identities begin so.
    """
    evaluations = store.evaluations()
    found = [evaluation for evaluation in evaluations if len(name) >= 6 and evaluation.spec.identity.startswith(name)]
    if len(found) > 1:
        raise UsageError(f"{name}: {len(found)} evaluations begin so; give more digits")
    if not found:
        found = [evaluation for evaluation in evaluations if evaluation.spec.model == name]
    if not found:
        known = {evaluation.spec.model for evaluation in evaluations}
        raise UsageError(f"{name}: neither the beginning of a run on record nor a model; {did_you_mean(name, known)}")
    (summary,) = summaries(store, [max(found, key=lambda evaluation: evaluation.recency)])
    return summary


def adversarial_arrays(store: Store, summary: Summary) -> dict[str, NDArray[Any]]:
    """Return the adversarial images on record of an evaluation: the worst case of each sample that has one.

    Returns:
        `x`, adversarial images (n, c, h, w), float32 in [0, 1]; `y`, true labels (n,); `index`, positions in the split (n,);
        `prediction`, predicted classes (n,); `attack`, labels of the attacks (n,).

    Raises:
        CannotEvaluate: no image is on record.
        DamagedData: an image is damaged.
    """
    rows = []
    for label in sorted(set(summary.worst) - {CLEAN}):
        run = summary.evaluation.attack_runs[label]
        images = {sample: example.adversarial for sample, example in store.examples(run).items()} | store.adversarials(run)
        outcomes = {outcome.index: outcome for outcome in store.outcomes(run)} if images else {}
        for position, worst in zip(summary.index.tolist(), summary.worst, strict=True):
            outcome = outcomes.get(position)
            if worst == label and outcome is not None and outcome.sample in images:
                rows.append((position, images[outcome.sample], outcome.label, outcome.prediction, label))
    if not rows:
        raise CannotEvaluate(
            f"{summary.model}: no adversarial images of this evaluation are on record; "
            "evaluate with --keep-adversarials, which attacks again where only images are missing"
        )
    rows.sort(key=lambda row: row[0])
    index, x, y, prediction, attack = zip(*rows, strict=True)
    return {
        "x": np.stack(x),
        "y": np.array(y, dtype=np.int64),
        "index": np.array(index, dtype=np.int64),
        "prediction": np.array([-1 if one is None else one for one in prediction], dtype=np.int64),
        "attack": np.array(attack),
    }
