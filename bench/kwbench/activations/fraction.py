"""Sparsity ratios as exact fractions."""

from fractions import Fraction


def sparsity(gamma: Fraction | float | str) -> Fraction:
    """gamma as written, exactly: 0.1 is one tenth. Raises ValueError outside (0, 1]."""
    exact = gamma if isinstance(gamma, Fraction) else Fraction(str(gamma))
    if not 0 < exact <= 1:
        raise ValueError(f"gamma: {gamma} is not in (0, 1]")
    return exact
