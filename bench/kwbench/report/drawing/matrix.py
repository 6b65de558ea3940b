"""Transfer between models as a matrix of targets (rows) and sources (columns), as in table 3 of xiao2020."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kwbench.formatting import percent
from kwbench.report.drawing.picture import COLOURS, COLUMN, PAGE, Picture, Style, literal
from kwbench.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Cell:
    """An accuracy. `copies`: source and target are independent copies of a network; `same`: they are one network."""

    accuracy: Interval | None
    copies: bool = False
    same: bool = False


def matrix_picture(
    title: str,
    targets: Sequence[str],
    sources: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    n: int,
    *,
    description: str = "",
) -> Picture:
    """Return the accuracy of each target on images made on each source, in percent with 95 % intervals; low values are dark.

    Cells of independent copies have a solid frame, cells of one network with itself a dashed one.
    """

    def size(style: Style) -> tuple[float, float]:
        if style is Style.PAPER:
            return (COLUMN if len(sources) < 4 else PAGE), 0.35 * len(targets) + 1.0
        return max(5.0, 1.2 * len(sources) + 0.09 * max(map(len, targets)) + 1.2), 0.5 * len(targets) + 1.6

    def draw(figure: "Figure", style: Style) -> None:
        axes = figure.subplots()
        values = np.full((len(targets), len(sources)), np.nan)
        for (target, source), cell in cells.items():
            if cell.accuracy is not None:
                values[targets.index(target), sources.index(source)] = 100 * cell.accuracy.value
        picture = axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        axes.grid(visible=False)
        axes.set_xticks(range(len(sources)), [literal(name) for name in sources], rotation=20, ha="right")
        axes.set_yticks(range(len(targets)), [literal(name) for name in targets])
        axes.set_xlabel("source")
        axes.set_ylabel("target")
        for (target, source), cell in cells.items():
            if cell.accuracy is not None:
                _draw_cell(axes, cell, cell.accuracy, sources.index(source), targets.index(target), n)
        figure.colorbar(picture, ax=axes, label="accuracy, %")

    return Picture(title, description, size, draw)


def _draw_cell(axes: "Axes", cell: Cell, accuracy: Interval, x: int, y: int, n: int) -> None:
    from matplotlib.patches import Rectangle

    ink = "white" if accuracy.value < 0.55 else "black"
    axes.text(x, y, percent(accuracy.value, n), color=ink, ha="center", va="bottom", weight="bold")
    span = f"{percent(accuracy.low, n)}–{percent(accuracy.high, n)}"
    axes.text(x, y, span, color=ink, ha="center", va="top", size="x-small")
    if cell.copies or cell.same:
        dashes = "--" if cell.same else "-"
        axes.add_patch(
            Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=COLOURS[1], linewidth=2, linestyle=dashes)
        )
