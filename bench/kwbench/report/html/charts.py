"""Small charts for the pages, as SVG whose colours follow the page's theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kwbench.formatting import count_text, plain

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40
# Classes of lines in `kwbench.css`; further lines repeat them.
_COLOURS = 8


@dataclass(frozen=True, slots=True)
class Point:
    """A point with its vertical interval, in the units of the axes. `label` is shown when the pointer is over it."""

    x: float
    y: float
    label: str
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined by a line; `step` keeps the value until the next point."""

    name: str
    points: tuple[Point, ...]
    step: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`, with its title."""

    title: str
    low: float
    high: float
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Return where a value stands between the ends, from 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / ((self.high - self.low) or 1.0)

    def ticks(self) -> list[float]:
        """Return about five round values; powers of ten on a logarithmic axis."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 5))]
        rough = (self.high - self.low) / 5 or 1.0
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= 0.999 * rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(step * number, 10) for number in range(first, last + 1)]


def scatter_svg(points: Sequence[Point], x: Axis, y: Axis, description: str) -> Markup:
    """Return a scatter chart with the vertical intervals of the points; named points have their name beside them."""
    frame = _Frame(x, y)
    marks = []
    for point in points:
        mark = frame.interval(point) + f'<circle class="dot" cx="{frame.x(point.x)}" cy="{frame.y(point.y)}" r="4"/>'
        mark += f"<title>{_text(point.label)}</title>"
        marks.append(f"<g>{mark}</g>")
        if point.name:
            right = frame.x(point.x) > _WIDTH - 190
            anchor = f'x="{frame.x(point.x) + (-8 if right else 8)}" y="{frame.y(point.y) - 6}"'
            marks.append(f'<text {anchor} text-anchor="{"end" if right else "start"}">{_text(point.name)}</text>')
    return frame.document(marks, description)


def lines_svg(lines: Sequence[Line], x: Axis, y: Axis, description: str) -> Markup:
    """Return a line chart with its legend."""
    frame = _Frame(x, y)
    marks = []
    for number, line in enumerate(lines):
        path = ""
        for position, point in enumerate(line.points):
            where = f"{frame.x(point.x)} {frame.y(point.y)}"
            path += f"M{where}" if not position else f"H{frame.x(point.x)}V{frame.y(point.y)}" if line.step else f"L{where}"
        dots = "" if line.step else "".join(_dot(frame, point) for point in line.points)
        marks.append(f'<g class="line c{number % _COLOURS}"><path d="{path}"/>{dots}<title>{_text(line.name)}</title></g>')
    legend = "".join(f'<li class="c{number % _COLOURS}"><i></i>{_text(line.name)}</li>' for number, line in enumerate(lines))
    return frame.document(marks, description) + Markup(f'<ul class="legend">{legend}</ul>')


class _Frame:
    """The area of a chart: positions, axes and grid."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y

    def x(self, value: float) -> float:
        return round(_LEFT + self._x.share(value) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(_HEIGHT - _BOTTOM - self._y.share(value) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def interval(self, point: Point) -> str:
        if point.low is None or point.high is None:
            return ""
        return f'<path class="span" d="M{self.x(point.x)} {self.y(point.low)}V{self.y(point.high)}"/>'

    def document(self, marks: Sequence[str], description: str) -> Markup:
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        grid = "".join(f"M{_LEFT} {self.y(tick)}H{right}" for tick in self._y.ticks())
        parts = [f'<path class="grid" d="{grid}"/><path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
        parts += [f'<text x="{_LEFT - 6}" y="{self.y(tick) + 4}" text-anchor="end">{tick:g}</text>' for tick in self._y.ticks()]
        parts += [
            f'<text x="{self.x(tick)}" y="{bottom + 16}" text-anchor="middle">{_tick(tick)}</text>' for tick in self._x.ticks()
        ]
        middle = (_LEFT + right) / 2
        parts.append(f'<text class="title" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{_text(self._x.title)}</text>')
        parts.append(
            f'<text class="title" transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
            f"{_text(self._y.title)}</text>"
        )
        head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(description)}">'
        return Markup("".join([head, *parts, *marks, "</svg>"]))


def _tick(value: float) -> str:
    return count_text(value) if value >= 10_000 else f"{value:g}"


def _dot(frame: _Frame, point: Point) -> str:
    circle = f'<circle cx="{frame.x(point.x)}" cy="{frame.y(point.y)}" r="3"><title>{_text(point.label)}</title></circle>'
    return frame.interval(point) + circle


def _text(text: str) -> Markup:
    return escape(plain(text, 400))
