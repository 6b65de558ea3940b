"""Runner: it judges what is missing on record, batch by batch, and writes each batch in one transaction.

An interrupted evaluation continues where the record ends, and ends with the same rows.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kwbench.errors import UsageError
from kwbench.evaluation.assignment import Assignment, assign
from kwbench.evaluation.certificates import certify_beside
from kwbench.evaluation.description import describe
from kwbench.evaluation.diagnosis import diagnose
from kwbench.evaluation.examples import ExampleChoice
from kwbench.evaluation.execution.executors import Executor, LocalExecutor
from kwbench.evaluation.execution.tasks import Task
from kwbench.evaluation.execution.timings import ATTACKS, CERTIFICATES, DIAGNOSIS, PROCESSES, RECORD, Timings
from kwbench.evaluation.fingerprint import told_apart
from kwbench.evaluation.request import Facts, Request
from kwbench.outcome import CLEAN, Outcome, Status
from kwbench.record.cascade import stages
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store

# Operating systems limit the time that a process may wait for another.
_LONGEST = 1_000_000
# Seconds between looks at the record while other programs do all that is left.
_POLL = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows on record: `done` of `samples` under `label`, and `done_in_all` of `rows_in_all` of the whole evaluation.

    In a cascade, `samples` are those that the attack sees, and `rows_in_all` assumes that no more of them are broken.
    `retried` of the missing rows are errors of an earlier command, which are tried again.
    """

    model: str
    label: str
    done: int
    samples: int
    done_in_all: int
    rows_in_all: int
    retried: int = 0


def evaluate(
    request: Request,
    store: Store,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    command: str = "",
    time_limit: float | None = None,
    thoroughly: bool = False,
    timings: Timings | None = None,
    open_executor: Callable[[Request, float | None], Executor] = LocalExecutor,
) -> Evaluation:
    """Evaluate one model and return its record, complete unless rows are invalid or errors.

    Rows that are errors may have had a cause that has passed, and are tried again.

    `thoroughly`: a diagnosis runs every check, also where no robustness is left that could be false. `timings` count where
    the time goes. `open_executor` returns what the tasks are executed by, from the request and `time_limit`.

    Raises UsageError, CannotEvaluate or DamagedData; finished batches are on record.
    """
    if request.batch_size < 1:
        raise UsageError(f"--batch-size {request.batch_size}: must be at least 1")
    if request.tile_size < 1:
        raise UsageError(f"--tile {request.tile_size}: must be at least 1")
    if time_limit is not None and not 0 < time_limit <= _LONGEST:
        raise UsageError(f"--time-limit {time_limit:g}: must be above 0 and at most {_LONGEST} seconds")
    if request.memory_limit is not None and not 0 < request.memory_limit < math.inf:
        raise UsageError(f"--memory-limit {request.memory_limit / 1e9:g}: must be above 0")
    timings = timings or Timings()
    with timings.phase(*PROCESSES):
        executor = open_executor(request, time_limit)
    timings.divide(PROCESSES, executor.facts.seconds, rest=PROCESSES)
    try:
        with timings.phase(*RECORD):
            facts = told_apart(executor.facts, store)
            evaluation = store.register(describe(request, facts, command))
            _run_attacks(request, executor, evaluation, store, report, timings)
        if request.suite.diagnose:
            rows = sum(len(store.outcomes(attack_run)) for attack_run in evaluation.attack_runs.values())

            def report_certified(done: int, images: int) -> None:
                report(Progress(facts.model, "certificates", done, images, rows, rows))

            with timings.phase(*CERTIFICATES):
                certify_beside(request, executor, facts, evaluation, store, report_certified, command=command)
            with timings.phase(*DIAGNOSIS, "record"):
                diagnose(
                    executor,
                    evaluation,
                    store,
                    lambda done, checks: report(Progress(executor.facts.model, "diagnosis", done, checks, rows, rows)),
                    thoroughly=thoroughly,
                    timings=timings,
                )
    finally:
        with timings.phase(*PROCESSES):
            executor.close()
    return evaluation


def _run_attacks(
    request: Request,
    executor: Executor,
    evaluation: Evaluation,
    store: Store,
    report: Callable[[Progress], None],
    timings: Timings,
) -> None:
    """Run the attacks of an evaluation in order, each on the samples that its stage of the cascade leaves it."""
    facts = executor.facts
    runs = list(evaluation.attack_runs.values())
    # Finished runs do not change; the others are read again once they are finished.
    tallies = store.tallies(runs)
    done_in_all = 0
    clean: dict[str, Outcome] = {}
    for position, (label, attack_run) in enumerate(evaluation.attack_runs.items()):
        seen = 0
        # A screened attack has a second phase, which depends on the outcomes of the first.
        for phase in range(2 if label in facts.screens else 1):
            stage = stages(evaluation.spec, [tallies.get(run) for run in runs[: position + 1]])[position]
            if stage.skipped is not None or phase == len(stage.phases):
                break
            rows = np.flatnonzero(stage.phases[phase]).tolist() if position else list(range(len(facts.samples)))
            seen += len(rows)
            done_in_all += len(rows)
            progress = Progress(facts.model, label, seen, seen, done_in_all, done_in_all + seen * (len(runs) - 1 - position))
            tally = tallies.get(attack_run)
            errors = tally is not None and Status.ERROR[:1].encode() in tally.status
            if stage.finished and not errors and len(stage.best) == len(facts.samples) and not request.keep_adversarials:
                if phase == len(stage.phases) - 1:
                    report(progress)
                continue
            recorded = _by_sample(store.outcomes(attack_run))
            failed = {facts.samples[row] for row in rows} & _failed(recorded)
            recorded = {sample: outcome for sample, outcome in recorded.items() if sample not in failed}
            if position and not clean:
                clean = _by_sample(store.outcomes(runs[0]))
            assignment = assign(facts, label, rows, stage if position else None, recorded, clean)
            if request.keep_adversarials and position:
                imageless = assignment.successes(recorded, facts.samples) - store.with_adversarials(attack_run)
                assignment = replace(assignment, imageless=imageless)
            if not (assignment.missing or assignment.imageless) and phase < len(stage.phases) - 1:
                continue
            remaining = len(assignment.missing)
            report(replace(progress, done=seen - remaining, done_in_all=done_in_all - remaining, retried=len(failed)))
            # The clean images have no examples.
            choice = (
                ExampleChoice(facts, stage, [clean[sample] for sample in facts.samples], request.examples) if position else None
            )
            batches = _missing_outcomes(request, executor, assignment, clean, choice, store, attack_run)
            for outcomes in _timed(batches, label, executor, timings):
                assignment.require_equal(outcomes, recorded, facts.model)
                store.append(attack_run, outcomes)
                # Outcomes on record stay as they are.
                recorded = {outcome.sample: replace(outcome, image=None, example=None) for outcome in outcomes} | recorded
                remaining = len(assignment.missing - recorded.keys())
                report(replace(progress, done=seen - remaining, done_in_all=done_in_all - remaining))
            recorded = _by_sample(store.outcomes(attack_run)) if store.shared else recorded
            if label == CLEAN:
                clean = recorded
            if passed := failed - _failed(recorded):
                _discard_consequences(executor.facts, evaluation, store, label, passed)
                tallies = store.tallies(runs)
            tallies |= store.tallies([attack_run])


def _discard_consequences(facts: Facts, evaluation: Evaluation, store: Store, label: str, passed: Collection[str]) -> None:
    """Delete what followed from the errors of an attack that have passed, so that it is found as if they had never occurred.

    Later attacks of a cascade saw samples that they may not see now. The checks saw a record with errors.
    """
    labels = list(evaluation.attack_runs)
    for later in labels[labels.index(label) + 1 :]:
        if later in facts.cascade:
            # Here, rows of other samples depend on which samples there are.
            all_rows = facts.stochastic or later in facts.whole_tiles or later in facts.screens
            store.discard(evaluation.attack_runs[later], None if all_rows else passed)
    store.record_findings(evaluation.id, [], instead_of=[finding.check for finding in store.findings(evaluation.id)])


def _failed(recorded: Mapping[str, Outcome]) -> set[str]:
    return {sample for sample, outcome in recorded.items() if outcome.status is Status.ERROR}


def _missing_outcomes(
    request: Request,
    executor: Executor,
    assignment: Assignment,
    clean: Mapping[str, Outcome],
    choice: ExampleChoice | None,
    store: Store,
    attack_run: int,
) -> Iterator[list[Outcome]]:
    """Yield the outcomes of an assignment, batch by batch.

    Where several programs share the record, those of tiles that no other program works on, until all are on record.
    """
    if not store.shared or assignment.imageless:
        yield from _outcomes(assignment.tasks(request, executor.facts, clean), executor, assignment, choice)
        return

    def remaining() -> Assignment:
        recorded = _by_sample(store.outcomes(attack_run))
        return replace(assignment, missing=assignment.missing - (recorded.keys() - _failed(recorded)) - tried)

    tried: set[str] = set()
    with store.claims(attack_run) as claims:
        while open_tiles := remaining().tiles(request, executor.facts, clean):
            claimed: list[int] = []
            for number in open_tiles:
                if len(claimed) < executor.facts.workers and claims.claim(number):
                    claimed.append(number)
            # Another program may have finished a tile just before it was claimed.
            still = remaining()
            tasks = still.tiles(request, executor.facts, clean)
            for outcomes in _outcomes([tasks[number] for number in claimed if number in tasks], executor, still, choice):
                tried |= {outcome.sample for outcome in outcomes}
                yield outcomes
            for number in claimed:
                claims.give_back(number)
            if not claimed:
                time.sleep(_POLL)


def _outcomes(
    tasks: Sequence[Task[list[Outcome]]], executor: Executor, assignment: Assignment, choice: ExampleChoice | None
) -> Iterator[list[Outcome]]:
    """Yield the outcomes of tasks, batch by batch, with the images that are worth keeping."""
    for _, outcomes in executor.map(tasks):
        kept = [outcome if assignment.keeps_image(outcome) else replace(outcome, image=None) for outcome in outcomes]
        yield kept if choice is None else choice.of(kept, assignment)


def _timed(batches: Iterator[list[Outcome]], label: str, executor: Executor, timings: Timings) -> Iterator[list[Outcome]]:
    """Count the time until each batch of outcomes for its attack, apart for the search and for what judging adds."""
    phase, before = (*ATTACKS, label), executor.busy
    searching = 0.0
    while True:
        with timings.phase(*phase):
            outcomes = next(batches, None)
        if outcomes is None:
            break
        # The seconds of clean images are those of their judging.
        searching += sum(outcome.seconds for outcome in outcomes) if label != CLEAN else 0.0
        yield outcomes
    judging = max(executor.busy - before - searching, 0.0)
    timings.share(phase, {(*phase, "search"): searching, (*phase, "judging"): judging}, rest=(*phase, "judging"))


def _by_sample(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {outcome.sample: outcome for outcome in outcomes}
