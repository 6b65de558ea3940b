"""Lines, points and bars in panels side by side."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from kwbench.record.measurement import Array
from kwbench.report.drawing import GRID, SOFT, Axis, colour_of, document, stroke, text, tick_text

_WIDTH, _HEIGHT = 330.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 34.0, 44.0
_HEAD, _LEGEND_LINE = 36.0, 20.0


@dataclass(frozen=True, slots=True)
class Line:
    """Values `y` at places `x`; a line is interrupted where either is NaN. `low` and `high` are the band around it.

    Lines of one `number` share colour and dashes, and those of one `name` an entry in the legend; without a name it has none.
    """

    name: str
    x: Array
    y: Array
    number: int
    low: Array | None = None
    high: Array | None = None
    kind: Literal["line", "points", "dotted", "bars", "both"] = "line"
    width: float = 2.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes and the lines in it."""

    title: str
    across: str
    up: str
    lines: tuple[Line, ...]
    log_across: bool = False
    log_up: bool = False
    # The axis upwards from 0 to this; None: as the values have it.
    top: float | None = None


def plot_svg(title: str, panels: Sequence[Panel], *, columns: int = 3, description: str = "") -> str:
    """The panels, with one legend for all of them. Raises ValueError without any panel."""
    if not panels:
        raise ValueError("there is nothing to draw")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    parts = []
    for place, panel in enumerate(panels):
        left, top = _WIDTH * (place % columns), _HEAD + _HEIGHT * (place // columns)
        parts.append(f'<g transform="translate({left:g} {top:g})">')
        parts += _panel(panel)
        parts.append("</g>")
    named = {line.name: line for panel in reversed(panels) for line in reversed(panel.lines) if line.name}
    width = max(_WIDTH * columns, 480.0)
    bottom = _HEAD + _HEIGHT * rows
    # As many entries in a row as have room.
    longest = max((len(name) for name in named), default=0) * 7.2 + 60
    across = max(1, int((width - 16) // longest))
    for place, line in enumerate(reversed(named.values())):
        x, y = 16 + longest * (place % across), bottom + _LEGEND_LINE * (place // across + 0.6)
        parts += _sample(line, x, y - 4)
        parts.append(f'<text x="{x + 36:.1f}" y="{y:.1f}">{text(line.name)}</text>')
    height = bottom + _LEGEND_LINE * math.ceil(len(named) / across) + (8 if named else 0)
    return document(width, height, title, parts, description)


def _panel(panel: Panel) -> Iterator[str]:
    xs = [float(value) for line in panel.lines for value in line.x]
    edges = [side for line in panel.lines for side in (line.y, line.low, line.high) if side is not None]
    ys = [float(value) for side in edges for value in side]
    across = Axis.around(xs, logarithmic=panel.log_across)
    up = Axis.around(ys, logarithmic=panel.log_up) if panel.top is None else Axis(0.0, panel.top)
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + across(x) * (right - _LEFT), floor - up(y) * (floor - _TOP)

    yield f'<text x="{_LEFT:g}" y="{_TOP - 10:g}" font-weight="600">{text(panel.title)}</text>'
    for tick in up.ticks():
        y = at(across.low, tick)[1]
        yield f'<path d="M{_LEFT:g} {y:.1f}H{right:g}" stroke="{GRID}"/>'
        yield f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end" fill="{SOFT}" font-size="11">{tick_text(tick)}</text>'
    for tick in across.ticks():
        x = at(tick, up.low)[0]
        yield f'<path d="M{x:.1f} {floor:g}v5" stroke="{SOFT}"/>'
        yield f'<text x="{x:.1f}" y="{floor + 17:g}" text-anchor="middle" fill="{SOFT}" font-size="11">{tick_text(tick)}</text>'
    yield f'<path d="M{_LEFT:g} {_TOP:g}V{floor:g}H{right:g}" fill="none" stroke="{SOFT}"/>'
    middle = (_LEFT + right) / 2
    yield f'<text x="{middle:g}" y="{_HEIGHT - 10:g}" text-anchor="middle" font-size="12">{text(panel.across)}</text>'
    middle = (_TOP + floor) / 2
    yield f'<text transform="translate(13 {middle:g}) rotate(-90)" text-anchor="middle" font-size="12">{text(panel.up)}</text>'
    for line in panel.lines:
        points = [
            at(float(x), float(y)) if math.isfinite(x) and math.isfinite(y) and (y > 0 or not panel.log_up) else None
            for x, y in zip(line.x, line.y, strict=True)
        ]
        if line.low is not None and line.high is not None:
            yield _band(line, at)
        if line.kind == "bars":
            yield _bars(line, points, floor)
            continue
        if line.kind in ("line", "dotted", "both"):
            yield f'<path d="{_path(points)}" {_stroke(line)}/>'
        if line.kind in ("points", "both"):
            dots = "".join(f"M{p[0]:.1f} {p[1]:.1f}h0" for p in points if p is not None)
            yield f'<path d="{dots}" fill="none" stroke="{colour_of(line.number)}" stroke-width="6" stroke-linecap="round"/>'


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Lines through the points that are there."""
    drawn, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        drawn.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    return "".join(drawn)


def _band(line: Line, at: Callable[[float, float], tuple[float, float]]) -> str:
    assert line.low is not None
    assert line.high is not None
    known = [
        (x, low, high)
        for x, low, high in zip(line.x, line.low, line.high, strict=True)
        if all(math.isfinite(each) for each in (x, low, high))
    ]
    upper = [at(x, high) for x, _, high in known]
    lower = [at(x, low) for x, low, _ in reversed(known)]
    return f'<path d="{_path([*upper, *lower])}Z" fill="{colour_of(line.number)}" opacity="0.13"/>' if known else ""


def _bars(line: Line, points: Sequence[tuple[float, float] | None], floor: float) -> str:
    """Bars as wide as their places are apart."""
    known = [point for point in points if point is not None]
    wide = 0.9 * min((b[0] - a[0] for a, b in pairwise(known)), default=10.0)
    drawn = "".join(f"M{x - wide / 2:.1f} {floor:g}V{y:.1f}h{wide:.1f}V{floor:g}Z" for x, y in known if floor - y > 0.05)
    return f'<path d="{drawn}" fill="{colour_of(line.number)}"/>'


def _stroke(line: Line) -> str:
    if line.kind == "dotted":
        return f'fill="none" stroke="{colour_of(line.number)}" stroke-width="{line.width:g}" stroke-dasharray="2 4"'
    return stroke(line.number, line.width)


def _sample(line: Line, x: float, y: float) -> Iterator[str]:
    if line.kind != "points":
        yield f'<path d="M{x:.1f} {y:.1f}h28" {_stroke(line)}/>'
    if line.kind in ("points", "both"):
        yield f'<circle cx="{x + 14:.1f}" cy="{y:.1f}" r="3" fill="{colour_of(line.number)}"/>'
