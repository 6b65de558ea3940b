"""Transfer between models as a matrix of targets (rows) and sources (columns), as in table 3 of xiao2020."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kwbench.formatting import percent
from kwbench.report.svg.drawing import INK, SOFT, document, text, viridis
from kwbench.statistics import Interval

_CELL_WIDTH, _CELL_HEIGHT, _HEAD, _LETTER = 118.0, 46.0, 72.0, 7.2


@dataclass(frozen=True, slots=True)
class Cell:
    """An accuracy. `copies`: source and target are independent copies of a network; `same`: they are one network."""

    accuracy: Interval | None
    copies: bool = False
    same: bool = False


def matrix_svg(
    title: str,
    targets: Sequence[str],
    sources: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    n: int,
    *,
    description: str = "",
) -> str:
    """Draw the accuracy of each target on images made on each source, in percent with 95 % intervals; low values are dark.

    Cells of independent copies have a solid frame, cells of one network with itself a dashed one.
    """
    left = 24 + _LETTER * max(map(len, targets))
    widest = max(_CELL_WIDTH, 12 + _LETTER * max(map(len, sources)))
    parts = [f'<text x="16" y="{_HEAD - 8:g}" font-size="12" fill="{SOFT}">target ↓   source →</text>']
    for column, source in enumerate(sources):
        x = left + widest * (column + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{_HEAD - 8:g}" text-anchor="middle" font-size="12">{text(source)}</text>')
    for row, target in enumerate(targets):
        top = _HEAD + _CELL_HEIGHT * row
        parts.append(f'<text x="{left - 8:g}" y="{top + _CELL_HEIGHT / 2 + 4:g}" text-anchor="end">{text(target)}</text>')
        for column, source in enumerate(sources):
            cell = cells.get((target, source))
            if cell is not None and cell.accuracy is not None:
                parts += _cell(cell, cell.accuracy, left + widest * column, top, widest, n)
    width = left + widest * len(sources) + 16
    bottom = _HEAD + _CELL_HEIGHT * len(targets)
    frames = " Framed: independent copies of one network." if any(cell.copies for cell in cells.values()) else ""
    frames += " Dashed: a network attacked through itself." if any(cell.same for cell in cells.values()) else ""
    note = f"Accuracy, %, with 95 % intervals.{frames}"
    parts.append(f'<text x="16" y="{bottom + 20:g}" font-size="11" fill="{SOFT}">{note}</text>')
    return document(max(width, 480.0), bottom + 34, title, parts, description)


def _cell(cell: Cell, accuracy: Interval, left: float, top: float, width: float, n: int) -> list[str]:
    red, green, blue = viridis(accuracy.value)
    ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else INK
    frame = ""
    if cell.copies or cell.same:
        dashes = ' stroke-dasharray="5 3"' if cell.same else ""
        frame = f' stroke="#d55e00" stroke-width="3"{dashes}'
    middle = left + width / 2
    span = f"{percent(accuracy.low, n)}–{percent(accuracy.high, n)}"
    return [
        f'<rect x="{left + 2:g}" y="{top + 2:g}" width="{width - 4:g}" height="{_CELL_HEIGHT - 4:g}" '
        f'fill="#{red:02x}{green:02x}{blue:02x}"{frame}/>',
        f'<text x="{middle:.1f}" y="{top + 21:g}" text-anchor="middle" font-weight="600" fill="{ink}">'
        f"{percent(accuracy.value, n)}</text>",
        f'<text x="{middle:.1f}" y="{top + 36:g}" text-anchor="middle" font-size="10" fill="{ink}">{span}</text>',
    ]
