"""Runner: it judges what is missing on record, batch by batch, and writes each batch in one transaction.

An interrupted evaluation continues where the record ends, and ends with the same rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kwbench.errors import UsageError
from kwbench.evaluation.assignment import Assignment, assign
from kwbench.evaluation.description import describe
from kwbench.evaluation.diagnosis import diagnose
from kwbench.evaluation.execution.executors import Executor, LocalExecutor
from kwbench.evaluation.fingerprint import told_apart
from kwbench.evaluation.request import Request
from kwbench.outcome import CLEAN, Outcome
from kwbench.record.cascade import stages
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows on record: `done` of `samples` under `label`, and `done_in_all` of `rows_in_all` of the whole evaluation.

    In a cascade, `samples` are those that the attack sees, and `rows_in_all` assumes that no more of them are broken.
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

    `thoroughly`: a diagnosis runs every check, also where no robustness is left that could be false.

    Raises UsageError, CannotEvaluate or DamagedData; finished batches are on record.
    """
    if request.batch_size < 1:
        raise UsageError(f"--batch-size {request.batch_size}: must be at least 1")
    if request.tile < 1:
        raise UsageError(f"--tile {request.tile}: must be at least 1")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"--time-limit {time_limit:g}: must be above 0")
    executor = LocalExecutor(request, time_limit)
    try:
        evaluation = store.register(describe(request, told_apart(executor.facts, store), command))
        _run_attacks(request, executor, evaluation, store, report)
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


def _run_attacks(
    request: Request, executor: Executor, evaluation: Evaluation, store: Store, report: Callable[[Progress], None]
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
            if stage.finished and len(stage.best) == len(facts.samples) and not request.keep_adversarials:
                if phase == len(stage.phases) - 1:
                    report(progress)
                continue
            recorded = _by_sample(store.outcomes(attack_run))
            if position and not clean:
                clean = _by_sample(store.outcomes(runs[0]))
            assignment = assign(facts, label, rows, stage if position else None, recorded, clean)
            if request.keep_adversarials and position:
                imageless = assignment.successes(recorded, facts.samples) - store.with_adversarials(attack_run)
                assignment = replace(assignment, imageless=imageless)
            if not (assignment.missing or assignment.imageless) and phase < len(stage.phases) - 1:
                continue
            remaining = len(assignment.missing)
            report(replace(progress, done=seen - remaining, done_in_all=done_in_all - remaining))
            for outcomes in _outcomes(request, executor, assignment, clean):
                assignment.require_equal(outcomes, recorded, facts.model)
                store.append(attack_run, outcomes)
                # Outcomes on record stay as they are.
                recorded = {outcome.sample: replace(outcome, image=None) for outcome in outcomes} | recorded
                remaining = len(assignment.missing - recorded.keys())
                report(replace(progress, done=seen - remaining, done_in_all=done_in_all - remaining))
            if label == CLEAN:
                clean = recorded
            tallies |= store.tallies([attack_run])


def _outcomes(
    request: Request, executor: Executor, assignment: Assignment, clean: Mapping[str, Outcome]
) -> Iterator[list[Outcome]]:
    """Yield the outcomes of an assignment, batch by batch, with the images that are worth keeping."""
    for _, outcomes in executor.map(assignment.tasks(request, executor.facts, clean)):
        yield [outcome if assignment.keeps_image(outcome) else replace(outcome, image=None) for outcome in outcomes]


def _by_sample(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {outcome.sample: outcome for outcome in outcomes}
