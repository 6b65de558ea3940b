"""Transfer between records: those of several machines become one, in which nothing occurs twice."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from kwbench.outcome import Outcome, Status
from kwbench.record.evaluation import Evaluation
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store

# Outcomes that one transaction adds.
_BATCH = 1000
# Distances of the same outcome, in units of their size: machines round differently.
_ROUNDING = 1e-5
_COMPARED = (
    "index",
    "label",
    "status",
    "clean_prediction",
    "prediction",
    "other_status",
    "selection_correct",
    "selection_draws",
    "fresh_correct",
    "fresh_draws",
)


@dataclass
class Transfer:
    """What a record took from another.

    Attributes:
        evaluations: evaluations that were new.
        outcomes: outcomes that were new.
        findings: findings that were new.
        experiments: experiments that were new.
        conflicts: what both records have, and have otherwise; the record that took keeps its own.
    """

    evaluations: int = 0
    outcomes: int = 0
    findings: int = 0
    experiments: int = 0
    conflicts: list[str] = field(default_factory=list)

    def __add__(self, other: "Transfer") -> "Transfer":
        return Transfer(
            self.evaluations + other.evaluations,
            self.outcomes + other.outcomes,
            self.findings + other.findings,
            self.experiments + other.experiments,
            [*self.conflicts, *other.conflicts],
        )


def transfer(source: Store, target: Store, models: Collection[str] | None = None) -> Transfer:
    """Add to `target` what only `source` has; of these models, by default of all. Return what was added.

    Evaluations that are new keep their dates, and follow those of the target in the order of writing. An attack run whose
    outcomes differ is a conflict, and none of its outcomes are taken. Times do not count as differences, and an outcome takes
    the place of an error. Repeating a transfer changes nothing, so an interrupted one is repeated.

    Raises CannotEvaluate or DamagedData, as `Store` does.
    """
    done = Transfer()
    known = {evaluation.spec.identity for evaluation in target.evaluations()}
    runs: set[str] = set()
    chosen = [evaluation for evaluation in source.evaluations() if models is None or evaluation.spec.model in models]
    for evaluation in sorted(chosen, key=lambda evaluation: evaluation.recency):
        done.evaluations += evaluation.spec.identity not in known
        own = target.adopt(evaluation)
        identities = {attack.label: attack.identity for attack in evaluation.spec.attacks}
        for label, run in evaluation.attack_runs.items():
            if identities[label] not in runs:
                runs.add(identities[label])
                _transfer_outcomes(source, run, target, own, label, done)
        _transfer_findings(source, evaluation, target, own, done)
    measured = {measurement.identity: measurement for measurement in target.experiments()}
    for measurement in source.experiments():
        if models is not None and measurement.model not in models:
            continue
        if measurement.identity not in measured:
            target.record_experiment(measurement)
            done.experiments += 1
        elif not _equal(measurement, measured[measurement.identity]):
            named = f"{measurement.experiment} on {measurement.model!r}" if measurement.model else measurement.experiment
            done.conflicts.append(f"experiment {named} (run {measurement.identity[:12]}): its arrays differ")
    return done


def _transfer_outcomes(source: Store, run: int, target: Store, evaluation: Evaluation, label: str, done: Transfer) -> None:
    own_run = evaluation.attack_runs[label]
    recorded = {outcome.sample: outcome for outcome in target.outcomes(own_run)}
    outcomes = source.outcomes(run)
    failed = {sample for sample, outcome in recorded.items() if outcome.status is Status.ERROR}
    for outcome in outcomes:
        before = recorded.get(outcome.sample)
        if before is None or outcome.sample in failed or outcome.status is Status.ERROR:
            continue
        if (name := _difference(before, outcome)) is not None:
            done.conflicts.append(
                f"{evaluation.spec.model}, attack {label!r} (run {evaluation.spec.identity[:12]}): sample {outcome.sample} has "
                f"{name} {getattr(before, name)} and {getattr(outcome, name)}; none of its outcomes were taken"
            )
            return
    images, examples = source.adversarials(run), source.examples(run)
    new = [
        outcome
        for outcome in outcomes
        if outcome.sample not in recorded or (outcome.sample in failed and outcome.status is not Status.ERROR)
    ]
    done.outcomes += len(new)
    # Those on record may still get an image.
    with_images = target.with_adversarials(own_run)
    pictured = {sample for sample in images if sample not in with_images} | set(examples)
    taken = {outcome.sample: outcome for outcome in new} | {
        outcome.sample: outcome for outcome in outcomes if outcome.sample in pictured
    }
    for part in _parts(taken.values()):
        target.append(
            own_run,
            [replace(outcome, image=images.get(outcome.sample), example=examples.get(outcome.sample)) for outcome in part],
        )


def _difference(one: Outcome, other: Outcome) -> str | None:
    """Return the name of a field in which two outcomes of a sample differ by more than rounding."""
    for name in _COMPARED:
        if getattr(one, name) != getattr(other, name):
            return name
    if (one.distance is None) != (other.distance is None):
        return "distance"
    close = (
        one.distance is None or other.distance is None or np.isclose(one.distance, other.distance, rtol=_ROUNDING, atol=1e-9)
    )
    return None if close else "distance"


def _transfer_findings(source: Store, evaluation: Evaluation, target: Store, own: Evaluation, done: Transfer) -> None:
    """Transfer the findings of checks that the target has not run."""
    recorded = {finding.check: finding for finding in target.findings(own.id)}
    new = []
    for finding in source.findings(evaluation.id):
        before = recorded.get(finding.check)
        if before is None:
            new.append(finding)
        elif before.fires != finding.fires:
            done.conflicts.append(
                f"{own.spec.model} (run {own.spec.identity[:12]}): check {finding.check!r} fires in one record only"
            )
    if new:
        target.record_findings(own.id, new)
        done.findings += len(new)


def _equal(one: Measurement, other: Measurement) -> bool:
    return one.arrays.keys() == other.arrays.keys() and all(
        one.arrays[name].shape == other.arrays[name].shape
        and np.allclose(one.arrays[name], other.arrays[name], rtol=_ROUNDING, equal_nan=True)
        for name in one.arrays
    )


def _parts(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    rows = list(outcomes)
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]
