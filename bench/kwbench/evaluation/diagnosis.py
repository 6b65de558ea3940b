"""Diagnoses an evaluation: gathers the evidence from its record and from the model, and puts it on record."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kwbench.checks import CHECKS, Case, Question, Retried, Survivors, budget_is_enough, outdated
from kwbench.checks.budget import TWICE_THE_BUDGET
from kwbench.checks.operations import RELAXED_OPERATIONS
from kwbench.evaluation.executors import Executor
from kwbench.evaluation.tasks import RetrySurvivors, RunCheck, Task
from kwbench.finding import Check, Criterion, Finding
from kwbench.outcome import CLEAN, Outcome, Status, escalated
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.record.summary import Summary, summaries
from kwbench.verdict import robustness_is_negligible
from kwbench.verdict.record_checks import examine_record, twin_of

# Samples examined at once.
EXAMINED = 64
# A stochastic model's sample has fallen when it is right less often than this.
_ALIVE = 0.05

_LEFT_OUT = Finding(
    "left out",
    None,
    0.0,
    False,
    "the protocol itself leaves nothing; `kwbench diagnose` also makes the checks of what the gradients hide",
)


def diagnose(
    executor: Executor,
    evaluation: Evaluation,
    store: Store,
    report: Callable[[int, int], None] = lambda done, checks: None,
    *,
    thoroughly: bool = False,
) -> list[Finding]:
    """What every check finds about a finished evaluation, as it is put on record; the model is not examined twice.

    Where the protocol itself leaves nothing there is no robustness that could be false, and unless `thoroughly`, only the
    checks of the model's answers are made. `report` hears how many checks of the model are done, and of how many.
    """
    (mine,) = summaries(store, [evaluation])
    twin = twin_of(mine.model)
    twins = [each for each in store.evaluations() if each.spec.model == twin] if twin is not None else []
    others = [each for each in summaries(store, twins) if each.complete]
    outcomes = {attack.name: store.outcomes(evaluation.attack_runs[attack.name]) for attack in mine.attacks}
    outcomes[CLEAN] = store.outcomes(evaluation.attack_runs[CLEAN])
    found = list(store.findings(evaluation.id))
    brief = not thoroughly and robustness_is_negligible(mine)
    due = _due(found, brief)
    if due:
        right = [each.index for each in outcomes[CLEAN] if each.status is not Status.WRONG]
        question = _question(mine, right or mine.index.tolist())
        survivors = _survivors(mine, outcomes)
        budget_is_due = not brief and not any(_is_current(each, TWICE_THE_BUDGET) for each in found)
        parts = survivors.parts() if budget_is_due else []
        # Long tasks first, so that workers finish together.
        tasks: list[Task[Any]] = [RetrySurvivors(part) for part in parts]
        tasks += [
            RunCheck(check.name, question) for check in sorted(CHECKS.values(), key=_cost, reverse=True) if check.name in due
        ]
        by_check: dict[str, list[Finding]] = {}
        again: dict[Survivors, Retried] = {}
        report(0, len(tasks))
        for done, (task, result) in enumerate(executor.map(tasks), start=1):
            if isinstance(task, RunCheck):
                by_check[task.check] = result
            elif isinstance(task, RetrySurvivors):
                again[task.survivors] = result
            report(done, len(tasks))
        fresh = [finding for check in CHECKS for finding in by_check.get(check, [])]
        if brief:
            fresh += [_LEFT_OUT]
        elif budget_is_due:
            fresh += [budget_is_enough([again[part] for part in parts], survivors.robust_accuracy)]
        found = [*_without([*fresh, _LEFT_OUT], found), *fresh]
    relaxes = not any(each.check == RELAXED_OPERATIONS.name and each.figure == 0 for each in found)
    of_record = examine_record(mine, outcomes, others, relaxes=relaxes)
    store.record_findings(evaluation.id, [*of_record, *_without(of_record, found)], instead_of=[_LEFT_OUT.check])
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
    return (finding.check, finding.revision) == (criterion.name, criterion.revision)


def _without(replacements: Sequence[Finding], findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that none of the replacements replaces."""
    names = {finding.check for finding in replacements}
    return [finding for finding in findings if finding.check not in names]


def _least_shares(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[int, float]:
    """By position, the least share of right selection draws of any candidate: that of the one that was chosen."""
    least: dict[int, float] = {}
    for each in (outcome for found in outcomes.values() for outcome in found if outcome.selection_draws):
        least[each.index] = min(least.get(each.index, 1.0), each.selection_correct / each.selection_draws)
    return least


def _question(standing: Summary, right: list[int]) -> Question:
    """What to examine: the first samples that are right."""
    values = () if standing.robust_values is None else standing.robust_values.tolist()
    robust = dict(zip(standing.index.tolist(), values, strict=True)) if values else {}
    return Question(rows=tuple(right[:EXAMINED]), robust=tuple(robust[row] for row in right[:EXAMINED]) if robust else ())


def _survivors(standing: Summary, outcomes: Mapping[str, Sequence[Outcome]]) -> Survivors:
    """Survivors from all over the slice, and whose budget to double: that of every attack that gained, but for those that the
    suite itself has doubled until they gained no more."""
    values = np.zeros(0) if standing.robust_values is None else standing.robust_values
    alive = np.flatnonzero(values >= _ALIVE)
    chosen = alive[np.unique(np.linspace(0, len(alive) - 1, EXAMINED).round().astype(int))] if len(alive) else alive
    ran = [attack.name for attack in standing.attacks]
    again = {escalated(label, doubled) for label in ran for doubled in range(1, 11)}
    gained = [attack.name for attack in standing.attacks if attack.broke and attack.name not in again]
    rows = standing.index[chosen].tolist()
    shares = _least_shares(outcomes) if standing.stochastic else {}
    return Survivors(
        rows=tuple(rows),
        values=tuple(values[chosen].tolist()),
        to_beat=tuple(shares.get(row, 1.0) for row in rows) if shares else (),
        robust_accuracy=float(values[alive].sum() / standing.n),
        doubled=tuple(label for label in gained if escalated(label, 1) not in ran),
        otherwise=tuple(label for label in ran if label not in again),
        tried=tuple(label for label in ran if {each.index for each in outcomes[label]}.issuperset(rows)),
    )
