"""Axes that map values to positions, with round ticks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """Map values between `low` and `high` to fractions of the axis, 0 to 1."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def around(cls, values: Sequence[float], *, logarithmic: bool = False, margin: float = 0.04) -> "Axis":
        """Return an axis that covers the finite values with a margin; a logarithmic one ignores those that are not positive."""
        usable = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)]
        low, high = (min(usable), max(usable)) if usable else (0.0, 1.0)
        if logarithmic:
            room = (high / low) ** margin if high > low else 2.0
            return cls(low / room, high * room, logarithmic=True)
        room = margin * (high - low) if high > low else max(abs(high), 1.0) * 0.1
        return cls(low - room, high + room)

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            return math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> list[float]:
        """Return about this many round values within the axis."""
        if self.logarithmic:
            return self._decades(about)
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _decades(self, about: int) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        if last - first >= 2:
            step = max(1, math.ceil((last - first) / about))
            return [10.0**power for power in range(first, last + 1, step)]
        sizes = [size * 10.0**power for power in range(first - 1, last + 1) for size in (1, 2, 5)]
        return [size for size in sizes if self.low <= size <= self.high]


def tick_text(value: float) -> str:
    """Return the label of a tick, such as 0.05, 200 or 10⁻⁷."""
    if value and not 1e-3 <= abs(value) < 1e5:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        digits = f"{value / 10.0**power:.3g}"
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"
    return f"{value:.4g}"
