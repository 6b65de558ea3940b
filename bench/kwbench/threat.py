"""The threat model: the norm that bounds a perturbation, and its radius."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

from kwbench.errors import UsageError

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[str, ...] = get_args(Norm)

# The distance beyond eps that the judge allows for the float32 rounding of x + delta, in the norm's unit.
TOLERANCE = 1e-6

# Larger than the distance of any two images, in any norm.
_LARGEST = 10**9


def exact_fraction(value: str | int | float | Fraction) -> Fraction:
    """Return a number exactly as it is written: 0.1 is one tenth, not the nearest binary fraction, and "8/255" is exact.

    A decimal too small for a float becomes 0. Raises ValueError if the value is not a finite number.
    """
    if isinstance(value, Fraction):
        return value
    text = str(value)
    if "/" not in text:
        # Checked first, because 1e999999999 as a fraction would fill the memory.
        try:
            nearest = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not math.isfinite(nearest):
            raise ValueError(f"{text} is not a finite number")
        if nearest == 0:
            return Fraction(0)
    try:
        return Fraction(text)
    except ZeroDivisionError:
        raise ValueError(f"{text} divides by zero") from None
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def parse_eps(value: str | int | float | Fraction, norm: str) -> Fraction:
    """Return the radius as an exact fraction, from "8/255", "0.031" or a number.

    Raises UsageError unless it is finite and positive, and at most 1 in linf (pixels lie in [0, 1]).
    """
    try:
        eps = exact_fraction(value)
    except ValueError:
        raise UsageError(f"eps: {value!r} is not a number; write a fraction such as 8/255 or a decimal") from None
    if eps <= 0 or (eps < 1 and float(eps) == 0):
        raise UsageError(f"eps: {value} is not positive; an attack needs a ball with a positive radius")
    if norm == "linf" and eps > 1:
        raise UsageError(f"eps: {value} exceeds 1, the whole range of a pixel in linf; 8 of 255 is written 8/255")
    if eps > _LARGEST:
        raise UsageError(f"eps: {value} exceeds the distance of any two images")
    return eps


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """A ball of radius `eps` in `norm` around each image, clipped to the pixel range [0, 1].

    Two results are comparable only if their threat models are equal; hence the exact fraction. `spelling` is how people wrote
    it, 6/255 for instance, and takes no part in comparisons.
    """

    norm: Norm
    eps: Fraction
    spelling: str = field(default="", compare=False)

    @classmethod
    def of(cls, norm: str, eps: str | int | float | Fraction) -> "ThreatModel":
        """Build a threat model from its text. Raises UsageError for an unknown norm or an impossible radius."""
        if norm not in NORMS:
            raise UsageError(f"norm: {norm!r} is unknown; one of {', '.join(NORMS)}")
        spelling = "" if isinstance(eps, Fraction) else str(eps).strip()
        return cls(norm, parse_eps(eps, norm), spelling)  # type: ignore[arg-type]

    @property
    def radius(self) -> float:
        """Return eps as the nearest float."""
        return float(self.eps)

    def pixel_radius(self, pixels: int) -> float:
        """Return the change of each pixel if so many pixels change alike up to the boundary of the ball."""
        return self.radius * {"linf": 1.0, "l2": 1 / math.sqrt(pixels), "l1": 1 / pixels}[self.norm]

    @property
    def eps_text(self) -> str:
        """Return eps as it was spelled; otherwise a decimal if that is short, a fraction of 255, or any fraction."""
        decimal = f"{float(self.eps):.6g}"
        if self.spelling or Fraction(decimal) == self.eps:
            return self.spelling or decimal
        # 6/255 is 2/85 when reduced.
        return f"{self.eps * 255}/255" if self.eps.denominator in (51, 85, 255) else str(self.eps)

    def __str__(self) -> str:
        return f"{self.norm} {self.eps_text}"


def parse_threats(text: str) -> tuple[ThreatModel, ...]:
    """Return the threat models of a list such as linf:8/255,l2:0.5.

    Raises UsageError unless there are at least two, all different.
    """
    pairs = [part.strip().partition(":") for part in text.split(",")]
    if not all(norm and separator and eps for norm, separator, eps in pairs):
        raise UsageError(f"threat: {text!r}; write NORM:RADIUS,NORM:RADIUS, such as linf:8/255,l2:0.5")
    threats = tuple(ThreatModel.of(norm.strip(), eps.strip()) for norm, _, eps in pairs)
    if len(set(threats)) < max(2, len(threats)):
        raise UsageError(f"threat: {text!r}; give at least two different threat models")
    return threats
