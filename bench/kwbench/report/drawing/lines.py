"""Line charts: lines, points and bars in panels side by side, with one legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from kwbench.record.measurement import Array
from kwbench.report.drawing.picture import COLUMN, PAGE, Dashes, Picture, Style, colour_of, dashes_of, literal, marker_of
from kwbench.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Accuracy curves have a logarithmic axis from this ratio of the largest to the smallest x on.
_LOGARITHMIC_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class Line:
    """A series of points, x and y (m,). A line is interrupted where x or y is NaN.

    Args:
        name: Its entry in the legend, shared by lines of equal names; without a name it has none.
        style: Number of its colour and dashes.
        low, high: Ends (m,) of a band around y, such as an interval; of a bar through each of single points.
        kind: "steps" keeps a value until the next point.
        labels: Names beside the points; empty ones are left out.
    """

    name: str
    x: Array
    y: Array
    style: int
    low: Array | None = None
    high: Array | None = None
    kind: Literal["line", "points", "dotted", "bars", "line and points", "steps"] = "line"
    width: float = 1.0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """A pair of axes and the lines between them. Formulas between dollar signs are set as such in the labels of the axes.

    Args:
        y_max: The y-axis covers 0 to this value; if None, the range of the lines.
        ticks_at_points: The x-axis has its ticks at the points of the lines.
        descending: The x-axis runs from the largest value to the smallest.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    y_max: float | None = None
    ticks_at_points: bool = False
    descending: bool = False


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


def curves_picture(drawn: Sequence[Curve], title: str, x_label: str, description: str = "") -> Picture:
    """Return accuracies in percent, 0 to 100, with their 95 % intervals. Raises ValueError without any point."""
    xs = sorted({float(x) for curve in drawn for x, _ in curve.points})
    if not xs:
        raise ValueError("there is nothing to draw")
    logarithmic = xs[0] > 0 and xs[-1] / xs[0] >= _LOGARITHMIC_RATIO
    lines = tuple(curve.line(style) for style, curve in enumerate(drawn))
    panel = Panel("", x_label, r"$A_\mathrm{rob}$, %", lines, log_x=logarithmic, y_max=100.0)
    return panels_picture(title, [panel], description=description)


def panels_picture(
    title: str, drawn: Sequence[Panel], *, columns: int = 3, wide: bool = False, description: str = ""
) -> Picture:
    """Return panels in rows of `columns`, with one legend for all; panels of the same quantity share its axis.

    `wide`: in papers as wide as the page. Raises ValueError without any panel.
    """
    if not drawn:
        raise ValueError("there is nothing to draw")
    columns = min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    # The first line of each name stands for the others.
    named = {line.name: line for panel in reversed(drawn) for line in reversed(panel.lines) if line.name}
    legend = list(reversed(named.values()))

    def size(style: Style) -> tuple[float, float]:
        if style is Style.PAPER and (columns > 2 or wide):
            width, height = PAGE, 3.2 if columns == 1 else 1.8
        elif style is Style.PAPER:
            width, height = COLUMN, 2.1 if columns == 1 else 1.7
        else:
            width, height = (6.4, 3.8) if columns == 1 else (3.3 * columns, 2.6)
        line = 0.16 if style is Style.PAPER else 0.22
        return width, height * rows + line * math.ceil(len(legend) / _in_a_row(legend, width, style))

    def draw(figure: "Figure", style: Style) -> None:
        share_x, share_y = _same([_x_quantity(panel) for panel in drawn]), _same([_y_quantity(panel) for panel in drawn])
        grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
        for position, axes in enumerate(grid.flat):
            if position >= len(drawn):
                axes.remove()
                continue
            panel = drawn[position]
            if share_y and position % columns:
                panel = replace(panel, y_label="")
            if share_x and position + columns < len(drawn):
                panel = replace(panel, x_label="")
            elif share_x:
                axes.tick_params(labelbottom=True)
            _draw_panel(axes, panel)
        if legend:
            box = figure.legend(
                [_sample(line) for line in legend],
                ["name"] * len(legend),
                loc="outside lower center",
                ncols=min(_in_a_row(legend, size(style)[0], style), len(legend)),
            )
            # As arguments, names that begin with an underscore would be left out.
            for text, line in zip(box.get_texts(), legend, strict=True):
                text.set_text(literal(line.name))

    return Picture(title, description, size, draw)


def _x_quantity(panel: Panel) -> object:
    return panel.x_label, panel.log_x, panel.descending


def _y_quantity(panel: Panel) -> object:
    return panel.y_label, panel.log_y, panel.y_max


def _same(values: Sequence[object]) -> bool:
    return all(value == values[0] for value in values)


def _in_a_row(legend: Sequence[Line], width: float, style: Style) -> int:
    """The number of entries that fit beside one another."""
    letter = 0.068 if style is Style.PAPER else 0.088
    longest = max((len(line.name) for line in legend), default=0)
    return max(1, int(width / (letter * longest + 0.55)))


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    axes.set_title(literal(panel.title))
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    for line in panel.lines:
        _draw_line(axes, line)
    if panel.log_x:
        _logarithmic(axes, "x")
    if panel.log_y:
        _logarithmic(axes, "y")
    if panel.y_max is not None:
        axes.set_ylim(0.0, panel.y_max)
    if panel.ticks_at_points:
        places = sorted({float(x) for line in panel.lines for x in line.x})
        axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_inverted(panel.descending)


def _logarithmic(axes: "Axes", which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic; over less than three decades its ticks are 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axes, f"set_{which}scale")("log", nonpositive="mask")
    low, high = getattr(axes, f"get_{which}lim")()
    if high / low < 1000:
        axis = getattr(axes, f"{which}axis")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_line(axes: "Axes", line: Line) -> None:
    colour = colour_of(line.style)
    if line.low is not None and line.high is not None:
        alone = np.isfinite(line.y) & (line.kind == "points" or np.isfinite(line.y).sum() == 1)
        if line.kind != "points":
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        if alone.any():
            axes.vlines(line.x[alone], line.low[alone], line.high[alone], color=colour)
    if line.kind == "bars":
        axes.bar(line.x, line.y, width=0.9 * float(np.diff(line.x).min(initial=1.0)), color=colour)
    elif line.kind == "points":
        axes.plot(line.x, line.y, "o", color=colour, zorder=3)
        _draw_labels(axes, line)
    else:
        (drawn,) = axes.plot(
            line.x,
            line.y,
            color=colour,
            linestyle=":" if line.kind == "dotted" else dashes_of(line.style),
            marker=marker_of(line.style) if line.kind == "line and points" else "",
            # Markers at 0 and 100 % are drawn whole.
            clip_on=line.kind != "line and points",
            drawstyle="steps-post" if line.kind == "steps" else "default",
        )
        drawn.set_linewidth(line.width * drawn.get_linewidth())


def _draw_labels(axes: "Axes", line: Line) -> None:
    """Write the names beside the points, towards the middle of the axes."""
    middle = sum(axes.get_xlim()) / 2
    for x, y, name in zip(line.x, line.y, line.labels, strict=bool(line.labels)):
        if name:
            side, shift = ("right", -5) if x > middle else ("left", 5)
            axes.annotate(literal(name), (x, y), (shift, 3), textcoords="offset points", ha=side)


def _sample(line: Line) -> "Artist":
    """The mark of a line in the legend."""
    from matplotlib.lines import Line2D

    if line.kind == "points":
        return Line2D([], [], color=colour_of(line.style), marker="o", linestyle="")
    dashes: Dashes = ":" if line.kind == "dotted" else dashes_of(line.style)
    marker = marker_of(line.style) if line.kind == "line and points" else ""
    return Line2D([], [], color=colour_of(line.style), linestyle=dashes, marker=marker)
