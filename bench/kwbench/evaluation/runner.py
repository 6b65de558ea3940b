"""Carries an evaluation out: what is missing on record is judged, batch by batch, and written down in one transaction each.

Kill it at any moment; the same command goes on where the record ends, and ends with the same rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.diagnosis import diagnose
from kwbench.evaluation.executors import Executor, LocalExecutor
from kwbench.evaluation.request import Facts, Request
from kwbench.evaluation.tasks import JudgeAttack, JudgeClean, Task
from kwbench.judge import SELECTION_DRAWS
from kwbench.outcome import CLEAN, Outcome, Status
from kwbench.record.cascade import Stage, stages
from kwbench.record.evaluation import AttackSpec, Evaluation, EvaluationSpec
from kwbench.record.provenance import code, digest, machine
from kwbench.record.store import Store


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is: rows on record under `label`, of all its samples, and of the whole evaluation.

    In a cascade, `samples` are those that still stand, and `rows_in_all` what it comes to if no more of them fall.
    """

    model: str
    label: str
    done: int
    samples: int
    done_in_all: int
    rows_in_all: int


def evaluate(
    request: Request,
    store: Store,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    command: str = "",
    time_limit: float | None = None,
    thoroughly: bool = False,
) -> Evaluation:
    """Evaluate one model and return its record, complete unless rows are invalid or errors.

    `thoroughly`: a diagnosis makes every check, also where nothing is left whose robustness could be false.

    Raises UsageError, CannotEvaluate or DamagedData; what was finished before is on record.
    """
    if request.batch_size < 1:
        raise UsageError(f"--batch-size {request.batch_size}: must be at least 1")
    if request.tile < 1:
        raise UsageError(f"--tile {request.tile}: must be at least 1")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"--time-limit {time_limit:g}: must be above 0")
    executor = LocalExecutor(request, time_limit)
    try:
        evaluation = store.register(describe(request, executor.facts, command))
        _carry_out(request, executor, evaluation, store, report)
        if request.suite.diagnose:
            rows = sum(len(store.outcomes(attack_run)) for attack_run in evaluation.attack_runs.values())
            diagnose(
                executor,
                evaluation,
                store,
                lambda done, checks: report(Progress(executor.facts.model, "diagnosis", done, checks, rows, rows)),
                thoroughly=thoroughly,
            )
    finally:
        executor.close()
    return evaluation


def describe(request: Request, facts: Facts, command: str = "") -> EvaluationSpec:
    """What is to be put on record: the identity of the evaluation and of each of its attack runs."""
    origin = facts.identity
    clean: dict[str, Any] = {"attack": CLEAN, "parameters": {}}
    suite = request.suite
    attacks: list[AttackSpec] = []
    for label, attack in {CLEAN: clean, **facts.attacks}.items():
        # The images themselves are the same at every radius, and looked at once.
        its = {key: value for key, value in origin.items() if label != CLEAN or key not in ("norm", "eps")}
        # What an attack declares follows from what identifies it.
        own = {key: value for key, value in attack.items() if key != "declared"}
        identity = {"origin": its, "label": label, **own}
        if label in facts.cascade:
            # Which samples it sees depends on all that came before, and on whether that ran.
            earlier = [[each.identity, facts.after.get(each.label, [])] for each in attacks]
            identity["cascade"] = [earlier, facts.after.get(label, []), facts.screens.get(label)]
        attacks.append(AttackSpec(label, digest(identity), attack))
    spec = {
        "origin": origin,
        "suite": suite.name,
        "attacks": [attack.identity for attack in attacks],
        "protocol": [asdict(attack) for attack in suite.attacks],
        "model": facts.model,
        "dataset": facts.dataset,
        "cascade": sorted(facts.cascade) if suite.then else suite.cascade,
        "paper_attacks": _known(suite.paper_attacks, facts),
        "protocol_attacks": _known(suite.protocol, facts),
        "after": facts.after,
        "screens": facts.screens,
        "not_applicable": facts.not_applicable,
        "passes": facts.passes,
    }
    return EvaluationSpec(
        # The reasons are messages; which attacks do not apply counts.
        identity=digest({**spec, "not_applicable": sorted(facts.not_applicable)}),
        model=facts.model,
        dataset=facts.dataset,
        suite=suite.name,
        threat=facts.threat,
        n=len(facts.samples),
        stochastic=facts.stochastic,
        attacks=tuple(attacks),
        spec=spec,
        provenance={
            **machine(),
            **code(),
            "device": facts.device,
            "threads": facts.threads,
            "workers": facts.workers,
            "effective_sparsity": facts.effective_sparsity,
            "command": command,
        },
    )


def _known(labels: Sequence[str] | None, facts: Facts) -> list[str] | None:
    return None if labels is None else [label for label in labels if label in facts.attacks]


@dataclass(frozen=True, slots=True)
class _Assignment:
    """What an attack has to do: the `rows` of the slice that it sees, and of their samples those that have no outcome yet, and
    those that lack only their image. `whole`: what happens to a sample depends on its company, so rows come in tiles that
    always start at the same places. `shares` are the least selection shares so far, by sample, of a stochastic model. `seconds`
    are about the most that a sample may take on one core."""

    label: str
    rows: list[int]
    whole: bool
    missing: frozenset[str]
    imageless: frozenset[str]
    shares: Mapping[str, float] | None
    cascade: bool
    seconds: float

    def to_beat(self, samples: Sequence[str]) -> list[int] | None:
        """As for `judge.judge`."""
        if self.shares is None or not self.cascade:
            return None
        return [round(self.shares[sample] * SELECTION_DRAWS) for sample in samples]

    def succeeded(self, outcome: Outcome) -> bool:
        """Whether the image of a row is worth keeping: it is broken, or the best so far of a stochastic model."""
        if self.shares is None:
            return outcome.status is Status.BROKEN
        draws = outcome.selection_draws
        return draws > 0 and outcome.selection_correct / draws < self.shares[outcome.sample]


def _carry_out(
    request: Request, executor: Executor, evaluation: Evaluation, store: Store, report: Callable[[Progress], None]
) -> None:
    facts = executor.facts
    runs = list(evaluation.attack_runs.values())
    # What is finished stays as it is; the others are read again once they are.
    tallies = store.tallies(runs)
    done_in_all = 0
    clean: dict[str, Outcome] = {}
    for position, (label, attack_run) in enumerate(evaluation.attack_runs.items()):
        seen = 0
        # Whether a screened attack goes on depends on what came of its first portion.
        for portion in range(2 if label in facts.screens else 1):
            stage = stages(evaluation.spec, [tallies.get(run) for run in runs[: position + 1]])[position]
            if stage.skipped is not None or portion == len(stage.phases):
                break
            rows = np.flatnonzero(stage.phases[portion]).tolist() if position else list(range(len(facts.samples)))
            seen += len(rows)
            done_in_all += len(rows)
            progress = Progress(facts.model, label, seen, seen, done_in_all, done_in_all + seen * (len(runs) - 1 - position))
            if stage.finished and len(stage.best) == len(facts.samples) and not request.keep_adversarials:
                if portion == len(stage.phases) - 1:
                    report(progress)
                continue
            recorded = _by_sample(store.outcomes(attack_run))
            if position and not clean:
                clean = _by_sample(store.outcomes(runs[0]))
            assignment = _assignment(facts, label, rows, stage if position else None, recorded, clean)
            if request.keep_adversarials and position:
                assignment = replace(
                    assignment, imageless=_successes(assignment, recorded, facts.samples) - store.with_adversarials(attack_run)
                )
            if not (assignment.missing or assignment.imageless) and portion < len(stage.phases) - 1:
                continue
            left = len(assignment.missing)
            report(replace(progress, done=seen - left, done_in_all=done_in_all - left))
            for outcomes in _judged(request, executor, assignment, clean):
                _require_the_same(assignment, outcomes, recorded, facts.model)
                store.append(attack_run, outcomes)
                # What is on record stays as it is.
                recorded = {outcome.sample: replace(outcome, image=None) for outcome in outcomes} | recorded
                left = len(assignment.missing - recorded.keys())
                report(replace(progress, done=seen - left, done_in_all=done_in_all - left))
            if label == CLEAN:
                clean = recorded
            tallies |= store.tallies([attack_run])


def _judged(
    request: Request, executor: Executor, assignment: _Assignment, clean: Mapping[str, Outcome]
) -> Iterator[list[Outcome]]:
    """Yield the outcomes of the rows still to be judged, batch by batch, with the images that are worth keeping."""
    tasks = [_task(assignment, rows, clean, executor.facts) for rows in _pending(executor.facts, assignment, request)]
    for _, outcomes in executor.map(tasks):
        yield [outcome if assignment.succeeded(outcome) else replace(outcome, image=None) for outcome in outcomes]


def _task(assignment: _Assignment, rows: list[int], clean: Mapping[str, Outcome], facts: Facts) -> Task[list[Outcome]]:
    """Return the task that judges some rows of an assignment."""
    if assignment.label == CLEAN:
        return JudgeClean(rows)
    samples = [facts.samples[row] for row in rows]
    return JudgeAttack(assignment.label, rows, [clean[sample] for sample in samples], assignment.to_beat(samples))


def _by_sample(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {outcome.sample: outcome for outcome in outcomes}


def _assignment(
    facts: Facts,
    label: str,
    rows: list[int],
    stage: Stage | None,
    recorded: Mapping[str, Outcome],
    clean: Mapping[str, Outcome],
) -> _Assignment:
    """What an attack has to do about some rows at its stage; None stands for the clean images."""
    shares = None
    if stage is not None and facts.stochastic:
        shares = dict(zip(facts.samples, stage.best.tolist(), strict=True))
    missing = frozenset(facts.samples[row] for row in rows) - recorded.keys()
    whole = facts.stochastic or label in facts.whole_tiles
    looks = sum(each.forwards for each in clean.values())
    pace = sum(each.seconds for each in clean.values()) / looks if looks else 0.0
    return _Assignment(
        label, rows, whole, missing, frozenset(), shares, label in facts.cascade, seconds=pace * facts.passes.get(label, 0)
    )


def _successes(assignment: _Assignment, recorded: Mapping[str, Outcome], samples: Sequence[str]) -> frozenset[str]:
    """The samples whose image is worth keeping, of those that the attack sees."""
    seen = {samples[row] for row in assignment.rows}
    return frozenset(each.sample for each in recorded.values() if each.sample in seen and assignment.succeeded(each))


# Rows that keep passes of an attack with several lanes a row about full, and the seconds after which a batch should be done.
_FEW, _LONG = 8, 600.0


def _pending(facts: Facts, assignment: _Assignment, request: Request) -> list[list[int]]:
    """Rows that are still to be judged, in batches."""
    tile, samples, wanted = request.tile, facts.samples, assignment.missing | assignment.imageless
    if assignment.whole:
        tiles = [assignment.rows[start : start + tile] for start in range(0, len(assignment.rows), tile)]
        return [each for each in tiles if any(samples[row] in wanted for row in each)]
    pending = [row for row in assignment.rows if samples[row] in wanted]
    share, most = -(-len(pending) // facts.workers), max(request.batch_size, tile)
    # As many batches of one size for each worker, so that none waits for another.
    size = -(-len(pending) // max(1, facts.workers * -(-share // most)))
    # What is judged together is lost together when it is stopped.
    size = min(size, max(_FEW, int(_LONG / assignment.seconds))) if assignment.seconds else size
    return [pending[start : start + size] for start in range(0, len(pending), max(size, 1))]


def _require_the_same(assignment: _Assignment, again: Sequence[Outcome], recorded: Mapping[str, Outcome], model: str) -> None:
    """An image that comes later must be evidence for the row that is there."""
    for outcome in again:
        before = recorded.get(outcome.sample)
        if before is None or (outcome.image is None and outcome.sample not in assignment.imageless):
            continue
        for name in ("status", "prediction", "selection_correct", "selection_draws", "fresh_correct", "fresh_draws"):
            if getattr(before, name) != getattr(outcome, name):
                raise CannotEvaluate(
                    f"{model}: {assignment.label}: sample {outcome.sample}, attacked again to keep its image, has {name} "
                    f"{getattr(outcome, name)}, on record is {getattr(before, name)}; evaluate anew into another --db"
                )
