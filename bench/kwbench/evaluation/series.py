"""Series of evaluations: what changes from one to the next, and which they are."""

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
    """Put on record that these evaluations belong together, in this order; their numbers stay where they are."""
    dataset = evaluations[0].spec.dataset
    identities = [each.spec.identity for each in evaluations]
    whole = {"experiment": name, "model": model, "dataset": dataset, **spec, "evaluations": identities}
    measured = Measurement(digest(whole), name, model, dataset, whole, {**machine(), "command": command}, arrays)
    store.record_experiment(measured)
    return measured
