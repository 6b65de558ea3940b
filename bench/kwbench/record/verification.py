"""Verification of a whole record: everything in it is read, and compared with its checksums."""

from collections.abc import Mapping
from dataclasses import dataclass

from kwbench.errors import DamagedData
from kwbench.record.database.checksums import REMEDY
from kwbench.record.store import Store


@dataclass(frozen=True)
class Verified:
    """How much of a record was read; `unguarded` attack runs are from before the record kept checksums."""

    evaluations: int
    attack_runs: int
    outcomes: int
    images: int
    findings: int
    experiments: int
    unguarded: int


def verify(store: Store) -> Verified:
    """Read everything on record. Raises DamagedData that names the first part that is not what was written."""
    store.verify_storage()
    evaluations = store.evaluations()
    runs = sorted({run for evaluation in evaluations for run in evaluation.attack_runs.values()})
    outcomes = images = 0
    for run in runs:
        arrays = store.outcome_arrays(run)
        pictures: list[Mapping[str, object]] = [store.adversarials(run), store.examples(run)]
        outcomes += len(arrays)
        images += sum(len(kept) for kept in pictures)
        lost = {sample for kept in pictures for sample in kept} - {sample.decode() for sample in arrays.sample.tolist()}
        if lost:
            raise DamagedData(f"damaged: attack run {run} has an image of sample {min(lost)}, and no outcome of it; {REMEDY}")
    tallies = store.tallies()
    return Verified(
        evaluations=len(evaluations),
        attack_runs=len(runs),
        outcomes=outcomes,
        images=images,
        findings=sum(map(len, store.findings_by_evaluation().values())),
        experiments=len(store.experiments()),
        unguarded=sum(not tally.guarded for tally in tallies.values()),
    )
