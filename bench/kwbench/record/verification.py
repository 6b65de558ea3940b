"""Verification of a whole record: everything in it is read, and compared with its checksums."""

from dataclasses import dataclass

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
        outcomes += len(store.outcomes(run))
        images += len(store.adversarials(run)) + len(store.examples(run))
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
