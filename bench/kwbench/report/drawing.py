"""What all pictures share: colours, strokes, text, axes, and an SVG file that loads nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from kwbench.formatting import plain

# Okabe and Ito's colours, which the colour-blind can tell apart; and dashes, for print without colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")

GRID, INK, SOFT = "#e0e0e0", "#1b1f24", "#555555"

# Nine colours of viridis (Smith and van der Walt, CC0), equally far apart; between them straight lines.
_VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")


def colour_of(number: int) -> str:
    """The colour of the curve with this number."""
    return COLOURS[number % len(COLOURS)]


def stroke(number: int, width: float = 2.0) -> str:
    """The attributes of the curve with this number."""
    dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="{colour_of(number)}" stroke-width="{width:g}"{dashes}'


def text(words: str) -> str:
    """Words that XML shows as they are."""
    return str(escape(plain(words)))


def document(width: float, height: float, title: str, parts: Sequence[str], description: str = "") -> str:
    """An SVG file of this size, or as wide as its title, on white; `description` says where its numbers come from."""
    width = max(width, 32 + 8.4 * len(title))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            f'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="{text(title)}">',
            *([f"<desc>{escape(plain(description, 4000))}</desc>"] if description else []),
            f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
            f'<text x="16" y="24" font-size="15" font-weight="600">{text(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def viridis(share: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a share from 0 (dark) to 1 (bright)."""
    place = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    first, second = (bytes.fromhex(_VIRIDIS[low + step]) for step in (0, 1))
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(first, second, strict=True))
    return red, green, blue


@dataclass(frozen=True, slots=True)
class Axis:
    """From values between `low` and `high` to shares of its length."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def around(cls, values: Sequence[float], *, logarithmic: bool = False, margin: float = 0.04) -> "Axis":
        """The axis that holds these values with a margin; one that is logarithmic takes the positive ones alone."""
        known = [each for each in values if math.isfinite(each) and (each > 0 or not logarithmic)]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
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
        """Round values within it, about so many."""
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
        return [each for each in sizes if self.low <= each <= self.high]


def tick_text(value: float) -> str:
    """A tick's value: 0.05, 200, 10⁻⁷."""
    if value and not 1e-3 <= abs(value) < 1e5:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        digits = f"{value / 10.0**power:.3g}"
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"
    return f"{value:.4g}"
