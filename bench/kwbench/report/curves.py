"""Curves of accuracy as a picture: one SVG file that loads nothing, for papers and pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from kwbench.formatting import interval_text, plain
from kwbench.record.summary import Summary
from kwbench.report.drawing import GRID, SOFT, colour_of, document, stroke, text
from kwbench.statistics import Interval

_WIDTH, _HEIGHT = 640.0, 400.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 16.0, 44.0, 48.0
_LEGEND_LINE = 20.0
# How wide one of an axis' numbers is, at most.
_CHARACTER = 8.0

# From this ratio of the largest to the smallest place on, the axis is logarithmic.
_DECADES = 20.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A name, and accuracies in [0, 1] at places along the axis; None where there is no number."""

    name: str
    points: tuple[tuple[float, Interval | None], ...]


def curves_svg(curves: Sequence[Curve], title: str, axis: str, description: str = "") -> str:
    """The curves with their 95 % intervals, accuracy in percent from 0 to 100. Raises ValueError without any point."""
    places = sorted({place for curve in curves for place, _ in curve.points})
    if not places:
        raise ValueError("there is nothing to draw")
    across = _Axis.of(places)
    height = _HEIGHT + _LEGEND_LINE * len(curves)
    parts = []
    for percent in range(0, 101, 20):
        y = _down(percent / 100)
        parts.append(f'<path d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}" stroke="{GRID}"/>')
        parts.append(f'<text x="{_LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end" fill="{SOFT}">{percent}</text>')
    beside = -math.inf
    for place in places:
        x, name = across(place), f"{place:.3g}"
        half = _CHARACTER * (len(name) + 1) / 2
        # Those that can be read side by side.
        if x - half >= beside:
            beside = x + half
            parts.append(f'<path d="M{x:.1f} {_down(0):.1f}v5" stroke="{SOFT}"/>')
            parts.append(f'<text x="{x:.1f}" y="{_down(0) + 19:.1f}" text-anchor="middle" fill="{SOFT}">{name}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    name = f"{axis}, logarithmic" if across.logarithmic else axis
    parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 8:g}" text-anchor="middle">{text(name)}</text>')
    parts.append(f'<text transform="translate(16 {_down(0.5):.1f}) rotate(-90)" text-anchor="middle">accuracy, %</text>')
    for number, curve in enumerate(curves):
        parts += _drawn(curve, across, number)
        y = _HEIGHT + _LEGEND_LINE * (number + 0.5)
        parts.append(f'<path d="M{_LEFT:g} {y - 4:.1f}h28" {stroke(number)}/>')
        parts.append(f'<text x="{_LEFT + 36:g}" y="{y:.1f}">{text(curve.name)}</text>')
    return document(_WIDTH, height, title, parts, description)


@dataclass(frozen=True, slots=True)
class _Axis:
    """From places to pixels."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, places: Sequence[float]) -> "_Axis":
        low, high = places[0], places[-1]
        return cls(low, high, low > 0 and high / low >= _DECADES)

    def __call__(self, place: float) -> float:
        if self.high == self.low:
            share = 0.5
        elif self.logarithmic:
            share = math.log(place / self.low) / math.log(self.high / self.low)
        else:
            share = (place - self.low) / (self.high - self.low)
        return _LEFT + 12 + share * (_WIDTH - _RIGHT - _LEFT - 24)


def _down(accuracy: float) -> float:
    return _HEIGHT - _BOTTOM - accuracy * (_HEIGHT - _BOTTOM - _TOP)


def _drawn(curve: Curve, across: _Axis, number: int) -> list[str]:
    known = [(across(place), each) for place, each in curve.points if each is not None]
    colour = colour_of(number)
    parts = []
    if len(known) > 1:
        upper = [f"{x:.1f} {_down(each.high):.1f}" for x, each in known]
        lower = [f"{x:.1f} {_down(each.low):.1f}" for x, each in reversed(known)]
        parts.append(f'<path d="M{"L".join(upper + lower)}Z" fill="{colour}" opacity="0.13"/>')
        line = "L".join(f"{x:.1f} {_down(each.value):.1f}" for x, each in known)
        parts.append(f'<path d="M{line}" {stroke(number)}/>')
    parts += [f'<circle cx="{x:.1f}" cy="{_down(each.value):.1f}" r="3" fill="{colour}"/>' for x, each in known]
    return parts


def sweep_table(what: str, values: Sequence[str], found: Sequence[Sequence[Summary]]) -> Table:
    """A_std and A_rob at each value, a row for each model, for the terminal; percent with 95 % intervals."""
    first = found[0][0]
    title = f"{plain(first.dataset)}, n = {first.n}; A_rob, percent, by {plain(what)}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "A_std", *values):
        table.add_column(Text(plain(name)), justify="left" if name == "model" else "right")
    for each in found:
        numbers = [each[0].a_std, *(one.a_rob for one in each)]
        table.add_row(Text(plain(each[0].model)), *(interval_text(number, first.n) for number in numbers))
    return table
