"""Checks of a model that tell whether attacks on it can be believed. A new one is a function here and a line in CHECKS."""

from collections.abc import Callable

import torch

from kwbench.checks.answers import answers_are_logits, answers_depend_on_the_image, answers_vary, operations_are_seen
from kwbench.checks.attacks import (
    free_attack_succeeds,
    frozen_is_weaker,
    more_leaves_less,
)
from kwbench.checks.budget import Retried, Survivors, budget_is_enough, retried
from kwbench.checks.case import Case, Question
from kwbench.checks.gradients import (
    answer_moves_with_the_image,
    gradient_is_coherent,
    gradient_is_one,
    gradient_is_there,
    gradient_is_true,
    gradient_leads,
    loss_has_settled,
)
from kwbench.finding import Finding

__all__ = ["CHECKS", "Case", "Question", "Retried", "Survivors", "budget_is_enough", "examine", "retried"]

# About 200 forward and backward passes of one tile together.
CHECKS: dict[str, Callable[[Case], list[Finding]]] = {
    "outputs": answers_are_logits,
    "state": answers_depend_on_the_image,
    "randomness": answers_vary,
    "operations": operations_are_seen,
    "zero gradients": gradient_is_there,
    "shattered gradients": gradient_is_true,
    "misleading gradients": gradient_leads,
    "incoherent gradients": gradient_is_coherent,
    "gradient noise": gradient_is_one,
    "plateaus": answer_moves_with_the_image,
    "rising loss": loss_has_settled,
    "eps sweep": more_leaves_less,
    "unbounded attack": free_attack_succeeds,
    "frozen randomness": frozen_is_weaker,
}


def examine(check: str, case: Case) -> list[Finding]:
    """What one of CHECKS finds. One that cannot be carried out leaves a finding without a figure, which supports nothing."""
    try:
        return CHECKS[check](case)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
        why = f"could not be carried out: {type(failure).__name__}: {failure}"[:500]
        return [Finding(check, None, 0.0, False, why, (), "doubt")]
