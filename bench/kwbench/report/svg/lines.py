"""Line charts: lines, points and bars in panels side by side, with one legend."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from kwbench.record.measurement import Array
from kwbench.report.svg.axis import Axis, tick_text
from kwbench.report.svg.drawing import GRID, SOFT, colour_of, document, stroke, text
from kwbench.statistics import Interval

_TOP, _RIGHT, _BOTTOM, _LEFT = 34.0, 12.0, 44.0, 58.0
_TITLE_HEIGHT, _LEGEND_LINE = 36.0, 20.0

# The width of one digit of a tick's label, at most.
_DIGIT = 8.0

# Accuracy curves have a logarithmic axis from this ratio of the largest to the smallest x on.
_LOGARITHMIC_RATIO = 20.0

# Width and height of a panel in a grid, and of a single panel.
_SMALL = (330.0, 270.0)
_LARGE = (640.0, 400.0)


@dataclass(frozen=True, slots=True)
class Line:
    """A series of points, x and y (m,). A line is interrupted where x or y is NaN.

    Args:
        name: Its entry in the legend, shared by lines of equal names; without a name it has none.
        style: Number of its colour and dashes; see `stroke`.
        low, high: Ends (m,) of a band around y, such as an interval.
    """

    name: str
    x: Array
    y: Array
    style: int
    low: Array | None = None
    high: Array | None = None
    kind: Literal["line", "points", "dotted", "bars", "line and points"] = "line"
    width: float = 2.0


@dataclass(frozen=True, slots=True)
class Panel:
    """A pair of axes and the lines between them.

    Args:
        y_max: The y-axis covers 0 to this value; if None, the range of the lines.
        x_ticks: Label these values as far as there is room; if None, round values.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    y_max: float | None = None
    x_ticks: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """A named series of (x, accuracy) with accuracies in [0, 1]; None where there is no number."""

    name: str
    points: tuple[tuple[float, Interval | None], ...]

    def line(self, style: int) -> Line:
        """The accuracies in percent, with their intervals as a band."""
        x = np.array([x for x, _ in self.points], dtype=float)
        y, low, high = (
            np.array([math.nan if accuracy is None else 100 * getattr(accuracy, end) for _, accuracy in self.points])
            for end in ("value", "low", "high")
        )
        return Line(self.name, x, y, style, low, high, kind="line and points")


def curves_svg(curves: Sequence[Curve], title: str, x_label: str, description: str = "") -> str:
    """Draw accuracies in percent, 0 to 100, with their 95 % intervals. Raises ValueError without any point."""
    xs = sorted({float(x) for curve in curves for x, _ in curve.points})
    if not xs:
        raise ValueError("there is nothing to draw")
    logarithmic = xs[0] > 0 and xs[-1] / xs[0] >= _LOGARITHMIC_RATIO
    panel = Panel(
        "",
        f"{x_label}, logarithmic" if logarithmic else x_label,
        "accuracy, %",
        tuple(curve.line(style) for style, curve in enumerate(curves)),
        log_x=logarithmic,
        y_max=100.0,
        x_ticks=tuple(xs),
    )
    return _chart(title, [panel], _LARGE, columns=1, description=description)


def panels_svg(title: str, panels: Sequence[Panel], *, columns: int = 3, description: str = "") -> str:
    """Draw the panels in rows of `columns`, with one legend for all. Raises ValueError without any panel."""
    return _chart(title, panels, _SMALL, columns=columns, description=description)


def _chart(title: str, panels: Sequence[Panel], size: tuple[float, float], *, columns: int, description: str) -> str:
    if not panels:
        raise ValueError("there is nothing to draw")
    panel_width, panel_height = size
    columns = min(columns, len(panels))
    parts = []
    for position, panel in enumerate(panels):
        row, column = divmod(position, columns)
        parts.append(f'<g transform="translate({panel_width * column:g} {_TITLE_HEIGHT + panel_height * row:g})">')
        parts += _PanelDrawing(panel, panel_width, panel_height).parts()
        parts.append("</g>")
    width = max(panel_width * columns, 480.0)
    bottom = _TITLE_HEIGHT + panel_height * math.ceil(len(panels) / columns)
    # The first line of each name stands for the others.
    named = {line.name: line for panel in reversed(panels) for line in reversed(panel.lines) if line.name}
    legend, height = _legend(list(reversed(named.values())), width, bottom)
    return document(width, bottom + height, title, [*parts, *legend], description)


def _legend(lines: Sequence[Line], width: float, top: float) -> tuple[list[str], float]:
    """The legend's elements, with as many entries in a row as fit, and its height."""
    if not lines:
        return [], 0.0
    entry = max(len(line.name) for line in lines) * 7.2 + 60
    in_a_row = max(1, int((width - 16) // entry))
    parts = []
    for position, line in enumerate(lines):
        row, column = divmod(position, in_a_row)
        x, y = 16 + entry * column, top + _LEGEND_LINE * (row + 0.6)
        if line.kind == "points":
            parts.append(f'<circle cx="{x + 14:.1f}" cy="{y - 4:.1f}" r="3" fill="{colour_of(line.style)}"/>')
        else:
            parts.append(f'<path d="M{x:.1f} {y - 4:.1f}h28" {_stroke(line)}/>')
        parts.append(f'<text x="{x + 36:.1f}" y="{y:.1f}">{text(line.name)}</text>')
    return parts, _LEGEND_LINE * math.ceil(len(lines) / in_a_row) + 8


class _PanelDrawing:
    """One panel in pixels, its upper left corner at the origin."""

    def __init__(self, panel: Panel, width: float, height: float) -> None:
        self.panel = panel
        self.height = height
        self.right, self.bottom = width - _RIGHT, height - _BOTTOM
        edges = [side for line in panel.lines for side in (line.y, line.low, line.high) if side is not None]
        xs = [float(x) for line in panel.lines for x in line.x]
        ys = [float(y) for side in edges for y in side]
        self.x_axis = Axis.around(xs, logarithmic=panel.log_x)
        self.y_axis = Axis.around(ys, logarithmic=panel.log_y) if panel.y_max is None else Axis(0.0, panel.y_max)

    def x(self, value: float) -> float:
        return _LEFT + self.x_axis(value) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        return self.bottom - self.y_axis(value) * (self.bottom - _TOP)

    def parts(self) -> Iterator[str]:
        if self.panel.title:
            yield f'<text x="{_LEFT:g}" y="{_TOP - 10:g}" font-weight="600">{text(self.panel.title)}</text>'
        yield from self._y_ticks()
        yield from self._x_ticks()
        yield f'<path d="M{_LEFT:g} {_TOP:g}V{self.bottom:g}H{self.right:g}" fill="none" stroke="{SOFT}"/>'
        middle, label = (_LEFT + self.right) / 2, text(self.panel.x_label)
        yield f'<text x="{middle:g}" y="{self.height - 10:g}" text-anchor="middle" font-size="12">{label}</text>'
        middle, label = (_TOP + self.bottom) / 2, text(self.panel.y_label)
        yield f'<text transform="translate(13 {middle:g}) rotate(-90)" text-anchor="middle" font-size="12">{label}</text>'
        for line in self.panel.lines:
            yield from self._line(line)

    def _y_ticks(self) -> Iterator[str]:
        for tick in self.y_axis.ticks():
            y = self.y(tick)
            yield f'<path d="M{_LEFT:g} {y:.1f}H{self.right:g}" stroke="{GRID}"/>'
            anchor = f'x="{_LEFT - 6:g}" y="{y + 4:.1f}"'
            yield f'<text {anchor} text-anchor="end" fill="{SOFT}" font-size="11">{tick_text(tick)}</text>'

    def _x_ticks(self) -> Iterator[str]:
        taken = -math.inf
        for tick in self.x_axis.ticks() if self.panel.x_ticks is None else self.panel.x_ticks:
            x, label = self.x(tick), tick_text(tick)
            half = _DIGIT * (len(label) + 1) / 2
            if self.panel.x_ticks is not None and x - half < taken:
                continue
            taken = x + half
            yield f'<path d="M{x:.1f} {self.bottom:g}v5" stroke="{SOFT}"/>'
            anchor = f'x="{x:.1f}" y="{self.bottom + 17:g}"'
            yield f'<text {anchor} text-anchor="middle" fill="{SOFT}" font-size="11">{label}</text>'

    def _line(self, line: Line) -> Iterator[str]:
        points = [
            (self.x(x), self.y(y)) if math.isfinite(x) and math.isfinite(y) and (y > 0 or not self.panel.log_y) else None
            for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)
        ]
        yield from self._band(line)
        if line.kind == "bars":
            yield self._bars(line, points)
        if line.kind in ("line", "dotted", "line and points"):
            yield f'<path d="{_path(points)}" {_stroke(line)}/>'
        if line.kind in ("points", "line and points"):
            for x, y in filter(None, points):
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour_of(line.style)}"/>'

    def _band(self, line: Line) -> Iterator[str]:
        if line.low is None or line.high is None:
            return
        known = [
            (self.x(x), self.y(low), self.y(high))
            for x, low, high in zip(line.x.tolist(), line.low.tolist(), line.high.tolist(), strict=True)
            if all(map(math.isfinite, (x, low, high)))
        ]
        if known:
            border = [*((x, high) for x, _, high in known), *((x, low) for x, low, _ in reversed(known))]
            yield f'<path d="{_path(border)}Z" fill="{colour_of(line.style)}" opacity="0.13"/>'

    def _bars(self, line: Line, points: Sequence[tuple[float, float] | None]) -> str:
        """Bars nine tenths as wide as the smallest distance between neighbours."""
        known = [point for point in points if point is not None]
        width = 0.9 * min((b[0] - a[0] for a, b in pairwise(known)), default=10.0)
        bars = "".join(
            f"M{x - width / 2:.1f} {self.bottom:g}V{y:.1f}h{width:.1f}V{self.bottom:g}Z"
            for x, y in known
            if self.bottom - y > 0.05
        )
        return f'<path d="{bars}" fill="{colour_of(line.style)}"/>'


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Straight lines from point to point, interrupted at each None."""
    commands, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        commands.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    return "".join(commands)


def _stroke(line: Line) -> str:
    if line.kind == "dotted":
        return f'fill="none" stroke="{colour_of(line.style)}" stroke-width="{line.width:g}" stroke-dasharray="2 4"'
    return stroke(line.style, line.width)
