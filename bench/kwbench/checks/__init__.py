"""Checks of a model: can the attacks on it be believed? A new check is a function in this folder and a line in CHECKS."""

from collections.abc import Iterable

import torch

from kwbench.checks.attacks import CONVERGENCE, RADII, UNBOUNDED_ATTACK
from kwbench.checks.budget import Retried, Survivors, budget_is_enough, retried
from kwbench.checks.case import Case, Question
from kwbench.checks.caveats import caveats
from kwbench.checks.directions import COHERENT, GUIDANCE, PREDICTION
from kwbench.checks.operations import OPERATIONS
from kwbench.checks.outputs import OUTPUTS
from kwbench.checks.randomness import FREEZING, REPETITION, VARIATION
from kwbench.checks.state import DEPENDENCE
from kwbench.checks.zero_gradients import EXISTENCE, REACTION
from kwbench.finding import Check, Criterion, Finding

__all__ = [
    "CHECKS",
    "Case",
    "Question",
    "Retried",
    "Survivors",
    "budget_is_enough",
    "caveats",
    "examine",
    "outdated",
    "retried",
]

# In the order in which their findings are recorded.
CHECKS: dict[str, Check[Case]] = {
    check.name: check
    for check in (
        OUTPUTS,
        DEPENDENCE,
        VARIATION,
        OPERATIONS,
        EXISTENCE,
        PREDICTION,
        GUIDANCE,
        COHERENT,
        REPETITION,
        REACTION,
        CONVERGENCE,
        RADII,
        UNBOUNDED_ATTACK,
        FREEZING,
    )
}


# How the statement of a check begins that raised.
_FAILED = "could not be carried out"


def examine(check: str, case: Case) -> list[Finding]:
    """Run one of CHECKS. If it raises, its finding has no figure, and confirms nothing."""
    try:
        return CHECKS[check].examine(case)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as failure:  # noqa: BLE001 - foreign modules may raise anything
        reason = f"{_FAILED}: {type(failure).__name__}: {failure}"
        return [Criterion(check, kind="doubt").not_measured(reason)]


def outdated(findings: Iterable[Finding]) -> set[str]:
    """Return the names of the checks of which a finding was measured by another revision than today's, or that raised.

    What made a check raise may have passed.
    """
    findings = list(findings)
    checks = {criterion.name: (name, criterion) for name, check in CHECKS.items() for criterion in check.criteria}
    raised = {finding.check for finding in findings if finding.figure is None and finding.statement.startswith(_FAILED)}
    return (raised & CHECKS.keys()) | {
        checks[finding.check][0]
        for finding in findings
        if finding.check in checks and finding.revision != checks[finding.check][1].revision
    }
