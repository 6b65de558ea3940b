"""Gradient estimators. Every gradient attack takes any of them."""

from kwbench.gradients.estimators import (
    EXACT,
    Eot,
    Es,
    Estimate,
    Exact,
    Gradient,
    Objective,
    Relaxed,
    Smooth,
    cosines_of,
    passes,
    with_more_draws,
    within,
)

__all__ = [
    "EXACT",
    "Eot",
    "Es",
    "Estimate",
    "Exact",
    "Gradient",
    "Objective",
    "Relaxed",
    "Smooth",
    "cosines_of",
    "passes",
    "with_more_draws",
    "within",
]
