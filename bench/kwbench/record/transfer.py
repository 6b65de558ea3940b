"""Transfer between records: those of several machines become one, in which nothing occurs twice."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from kwbench.outcome import Status
from kwbench.record.arrays import OutcomeArrays
from kwbench.record.evaluation import Evaluation
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store

_ERROR = Status.ERROR[:1].encode()
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
    recorded, outcomes = target.outcome_arrays(own_run), source.outcome_arrays(run)
    places = {sample: place for place, sample in enumerate(recorded.sample.tolist())}
    before = np.array([places.get(sample, -1) for sample in outcomes.sample.tolist()], dtype=np.intp)
    failed, failed_before = outcomes.status == _ERROR, np.zeros(len(outcomes), dtype=np.bool_)
    failed_before[before >= 0] = (recorded.status == _ERROR)[before[before >= 0]]
    shared = np.flatnonzero((before >= 0) & ~failed & ~failed_before)
    conflict = _conflict(recorded.take(before[shared]), outcomes.take(shared))
    if conflict is not None:
        done.conflicts.append(
            f"{evaluation.spec.model}, attack {label!r} (run {evaluation.spec.identity[:12]}): {conflict}; "
            "none of its outcomes were taken"
        )
        return
    new = (before < 0) | (failed_before & ~failed)
    done.outcomes += int(new.sum())
    if new.any():
        target.append(own_run, outcomes.take(new))
    images, examples = source.adversarials(run), source.examples(run)
    # Outcomes on record may still get an image.
    with_images = target.with_adversarials(own_run) if images else set()
    pictured = {sample for sample in images if sample not in with_images} | set(examples)
    if pictured:
        chosen = outcomes.take(np.array([sample.decode() in pictured for sample in outcomes.sample.tolist()], dtype=np.bool_))
        rows = chosen.outcomes()
        target.append(
            own_run,
            [replace(row, image=images.get(row.sample), example=examples.get(row.sample)) for row in rows],
        )


def _conflict(recorded: OutcomeArrays, outcomes: OutcomeArrays) -> str | None:
    """Return how outcomes of the same samples differ by more than rounding, at the first sample; None if they do not."""
    close = np.isclose(recorded.distance, outcomes.distance, rtol=_ROUNDING, atol=1e-9, equal_nan=True)
    differ = {name: getattr(recorded, name) != getattr(outcomes, name) for name in _COMPARED} | {"distance": ~close}
    rows = [int(np.argmax(different)) for different in differ.values() if different.any()]
    if not rows:
        return None
    row = np.array([min(rows)])
    name = next(name for name, different in differ.items() if different[row[0]])
    (one,), (other,) = recorded.take(row).outcomes(), outcomes.take(row).outcomes()
    return f"sample {one.sample} has {name} {getattr(one, name)} and {getattr(other, name)}"


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
