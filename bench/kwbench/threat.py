"""The threat model: which norm bounds the perturbation, and by how much."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from kwbench.errors import UsageError

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[str, ...] = get_args(Norm)


def parse_eps(value: str | int | float | Fraction, norm: str) -> Fraction:
    """The radius as an exact fraction, from "8/255", "0.031" or a number.

    Raises UsageError unless it is finite and positive, and at most 1 in linf (pixels lie in [0, 1]).
    """
    try:
        # str() first: 0.1 means one tenth, not the nearest binary fraction.
        eps = Fraction(value) if isinstance(value, Fraction) else Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"eps: {value!r} is not a number; write a fraction such as 8/255 or a decimal") from None
    if not math.isfinite(eps) or eps <= 0:
        raise UsageError(f"eps: {value} is not positive; an attack needs room to move")
    if norm == "linf" and eps > 1:
        raise UsageError(f"eps: {value} exceeds 1, the whole range of a pixel in linf; 8 of 255 is written 8/255")
    return eps


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """A ball of radius `eps` in `norm` around each image, cut to the pixel range [0, 1].

    Two results are comparable only if their threat models are equal; hence the exact fraction.
    """

    norm: Norm
    eps: Fraction

    @classmethod
    def of(cls, norm: str, eps: str | int | float | Fraction) -> "ThreatModel":
        """Checked construction. Raises UsageError for an unknown norm or an impossible radius."""
        if norm not in NORMS:
            raise UsageError(f"norm: {norm!r} is unknown; one of {', '.join(NORMS)}")
        return cls(norm, parse_eps(eps, norm))  # type: ignore[arg-type]

    @property
    def radius(self) -> float:
        """eps as the nearest float."""
        return float(self.eps)

    @property
    def eps_text(self) -> str:
        """eps as people write it: a decimal where it is short, otherwise the fraction."""
        decimal = f"{float(self.eps):.6g}"
        return decimal if Fraction(decimal) == self.eps else str(self.eps)

    def __str__(self) -> str:
        return f"{self.norm} {self.eps_text}"
