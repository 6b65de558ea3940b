"""Sparsity ratios as exact fractions."""

from fractions import Fraction

from kwbench.threat import exact_fraction


def parse_sparsity(gamma: Fraction | float | str) -> Fraction:
    """Return gamma exactly as written: 0.1 is one tenth. Raises ValueError if it is not a number in (0, 1]."""
    try:
        exact = exact_fraction(gamma)
    except ValueError:
        raise ValueError(f"gamma: {gamma!r} is not a number; write a decimal or a fraction such as 1/10") from None
    if not 0 < exact <= 1:
        raise ValueError(f"gamma: {gamma} is not in (0, 1]")
    return exact
