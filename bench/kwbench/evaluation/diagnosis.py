"""Diagnosis of an evaluation: run the checks of its model and of its record, and store their findings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kwbench.checks import CHECKS, Case, Question, Retried, Survivors, budget_is_enough, outdated
from kwbench.checks.budget import TWICE_THE_BUDGET
from kwbench.checks.operations import RELAXED_OPERATIONS
from kwbench.evaluation.execution.executors import Executor
from kwbench.evaluation.execution.tasks import RetrySurvivors, RunCheck, Task
from kwbench.evaluation.execution.timings import DIAGNOSIS, Timings
from kwbench.finding import Check, Criterion, Finding
from kwbench.outcome import CLEAN, Outcome, Status, escalated
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.verdict import robustness_is_negligible
from kwbench.verdict.record_checks import examine_record, twin_of

# Samples examined at once.
EXAMINED = 64
# A stochastic model's sample counts as broken if it is right less often than this.
_ALIVE = 0.05

_LEFT_OUT = Finding(
    "left out",
    None,
    0.0,
    False,
    "the protocol itself leaves nothing; `kwbench diagnose` also runs the checks of hidden gradients",
)


def diagnose(
    executor: Executor,
    evaluation: Evaluation,
    store: Store,
    report: Callable[[int, int], None] = lambda done, checks: None,
    *,
    thoroughly: bool = False,
    timings: Timings | None = None,
) -> list[Finding]:
    """Check a finished evaluation, and return the findings as they are on record. The model is checked only once.

    Where the protocol leaves no robustness that could be false, only the cheap checks run, unless `thoroughly`. `report` is
    called with the number of tasks done, and of all tasks. `timings` count each check as a part of the diagnosis.
    """
    timings = timings or Timings()
    (summary,) = summaries(store, [evaluation])
    twin = twin_of(summary.model)
    twins = [evaluation for evaluation in store.evaluations() if evaluation.spec.model == twin] if twin is not None else []
    others = [other for other in summaries(store, twins) if other.complete]
    outcomes = {attack.name: store.outcomes(evaluation.attack_runs[attack.name]) for attack in summary.attacks}
    outcomes[CLEAN] = store.outcomes(evaluation.attack_runs[CLEAN])
    findings = list(store.findings(evaluation.id))
    brief = not thoroughly and robustness_is_negligible(summary)
    due = _due(findings, brief)
    if due:
        right = [outcome.index for outcome in outcomes[CLEAN] if outcome.status is not Status.WRONG]
        question = _question(summary, right or summary.index.tolist())
        survivors = _survivors(summary, outcomes)
        budget_is_due = not brief and not any(_is_current(finding, TWICE_THE_BUDGET) for finding in findings)
        parts = survivors.parts() if budget_is_due else []
        # Long tasks first, so that workers finish together.
        tasks: list[Task[Any]] = [RetrySurvivors(part) for part in parts]
        tasks += [
            RunCheck(check.name, question) for check in sorted(CHECKS.values(), key=_cost, reverse=True) if check.name in due
        ]
        by_check: dict[str, list[Finding]] = {}
        again: dict[Survivors, Retried] = {}
        seconds: dict[tuple[str, ...], float] = {}
        report(0, len(tasks))
        with timings.phase(*DIAGNOSIS):
            busy = executor.busy
            for done, (task, result) in enumerate(executor.map(tasks), start=1):
                name = TWICE_THE_BUDGET.name
                if isinstance(task, RunCheck):
                    name = task.check
                    by_check[name] = result
                elif isinstance(task, RetrySurvivors):
                    again[task.survivors] = result
                busy, before = executor.busy, busy
                seconds[(*DIAGNOSIS, name)] = seconds.get((*DIAGNOSIS, name), 0.0) + busy - before
                report(done, len(tasks))
        timings.share(DIAGNOSIS, seconds, rest=(*DIAGNOSIS, "record"))
        fresh = [finding for check in CHECKS for finding in by_check.get(check, [])]
        if brief:
            fresh += [_LEFT_OUT]
        elif budget_is_due:
            fresh += [budget_is_enough([again[part] for part in parts], survivors.robust_accuracy)]
        # A check that raised left a finding of its own name.
        findings = [finding for finding in findings if finding.check not in due]
        findings = [*_without([*fresh, _LEFT_OUT], findings), *fresh]
    relaxes = not any(finding.check == RELAXED_OPERATIONS.name and finding.figure == 0 for finding in findings)
    of_record = examine_record(summary, outcomes, others, relaxes=relaxes)
    store.record_findings(evaluation.id, [*of_record, *_without(of_record, findings)], instead_of=[_LEFT_OUT.check, *due])
    return store.findings(evaluation.id)


def _due(findings: Sequence[Finding], brief: bool) -> set[str]:
    """Return the names of the checks of the model that are not on record at their current revision.

    If `brief`, checks that do not always run are not due.
    """
    due = outdated(findings)
    left_out = any(finding.check == _LEFT_OUT.check for finding in findings)
    if not brief and (not findings or left_out):
        due |= {name for name, check in CHECKS.items() if not check.always}
    if not findings:
        due |= {name for name, check in CHECKS.items() if check.always}
    return due


def _cost(check: Check[Case]) -> int:
    return check.passes


def _is_current(finding: Finding, criterion: Criterion) -> bool:
    # What kept it from being measured may have passed.
    return finding.figure is not None and (finding.check, finding.revision) == (criterion.name, criterion.revision)


def _without(replacements: Sequence[Finding], findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that none of the replacements replaces."""
    names = {finding.check for finding in replacements}
    return [finding for finding in findings if finding.check not in names]


def _least_shares(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[int, float]:
    """Return, by position, the smallest share of right selection draws of any candidate: that of the chosen one."""
    least: dict[int, float] = {}
    for outcome in (outcome for rows in outcomes.values() for outcome in rows if outcome.selection_draws):
        least[outcome.index] = min(least.get(outcome.index, 1.0), outcome.selection_correct / outcome.selection_draws)
    return least


def _question(summary: Summary, right: list[int]) -> Question:
    """Return what the checks look at: the first samples that are right."""
    values = () if summary.robust_values is None else summary.robust_values.tolist()
    robust = dict(zip(summary.index.tolist(), values, strict=True)) if values else {}
    return Question(rows=tuple(right[:EXAMINED]), robust=tuple(robust[row] for row in right[:EXAMINED]) if robust else ())


def _survivors(summary: Summary, outcomes: Mapping[str, Sequence[Outcome]]) -> Survivors:
    """Return survivors spread over the slice, and the attacks whose budget is to be doubled.

    These are the attacks that gained, except those that the suite itself has doubled until they gained no more.
    """
    values = np.zeros(0) if summary.robust_values is None else summary.robust_values
    alive = np.flatnonzero(values >= _ALIVE)
    chosen = alive[np.unique(np.linspace(0, len(alive) - 1, EXAMINED).round().astype(int))] if len(alive) else alive
    ran = [attack.name for attack in summary.attacks]
    again = {escalated(label, doubled) for label in ran for doubled in range(1, 11)}
    gained = [attack.name for attack in summary.attacks if attack.broke and attack.name not in again]
    rows = summary.index[chosen].tolist()
    shares = _least_shares(outcomes) if summary.stochastic else {}
    return Survivors(
        rows=tuple(rows),
        values=tuple(values[chosen].tolist()),
        to_beat=tuple(shares.get(row, 1.0) for row in rows) if shares else (),
        robust_accuracy=float(values[alive].sum() / summary.n),
        doubled=tuple(label for label in gained if escalated(label, 1) not in ran),
        otherwise=tuple(label for label in ran if label not in again),
        tried=tuple(label for label in ran if {outcome.index for outcome in outcomes[label]}.issuperset(rows)),
    )
