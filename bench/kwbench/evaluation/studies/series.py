"""Series of evaluations, such as a sweep: the varied quantity, and the evaluations in order."""

from collections.abc import Mapping, Sequence
from typing import Any

from kwbench.record.evaluation import Evaluation
from kwbench.record.measurement import Array, Measurement
from kwbench.record.provenance import digest, machine
from kwbench.record.store import Store


def record_series(
    store: Store,
    name: str,
    evaluations: Sequence[Evaluation],
    spec: Mapping[str, Any],
    arrays: Mapping[str, Array],
    *,
    model: str,
    command: str = "",
) -> Measurement:
    """Put a series on record: it refers to the evaluations, in order, and holds no numbers of its own."""
    dataset = evaluations[0].spec.dataset
    identities = [evaluation.spec.identity for evaluation in evaluations]
    whole = {"experiment": name, "model": model, "dataset": dataset, **spec, "evaluations": identities}
    measurement = Measurement(digest(whole), name, model, dataset, whole, {**machine(), "command": command}, arrays)
    store.record_experiment(measurement)
    return measurement
