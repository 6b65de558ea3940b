"""A picture before it is drawn, the two styles, and the files of it: the same picture gives the same bytes."""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from kwbench.formatting import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Formats of files, by their suffix.
KINDS = ("svg", "pdf", "png")

# Width of one column and of a page's text in two-column papers, in inches.
COLUMN, PAGE = 3.3, 6.9

Dashes = Literal["-", "--", ":", "-."]

# The colours of Okabe and Ito, which colour-blind readers can distinguish; dashes for prints without colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "os^Dvp*"
DASHES: tuple[Dashes, ...] = ("-", "--", ":", "-.")
SOFT = "#555555"

# Inches around the label of a tick that stay free.
_GAP = 0.015


class Style(StrEnum):
    """`screen` has titles and room; `paper` is as wide as a column or a page, in 8 points, and leaves titles to captions."""

    SCREEN = "screen"
    PAPER = "paper"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that can be drawn.

    Args:
        title: Above the picture on a screen, and in the metadata of every file.
        description: Names the runs that the numbers come from, in the metadata of every file.
        size: Return width and height in inches.
        draw: Draw into an empty matplotlib figure. It runs with the settings of the style.
    """

    title: str
    description: str
    size: Callable[[Style], tuple[float, float]]
    draw: Callable[["Figure", Style], None]

    def files(self, style: Style = Style.SCREEN, kinds: Sequence[str] = KINDS) -> dict[str, bytes]:
        """Return the content of a file of each kind."""
        with _settings(style):
            figure = self.figure(style)
            # Once for all kinds; axes of a fixed shape settle in the second pass.
            figure.draw_without_rendering()
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            _hide_crowded_labels(figure)
            return {kind: self._file(figure, kind) for kind in kinds}

    def svg(self, style: Style = Style.SCREEN) -> str:
        """Return the SVG file."""
        return self.files(style, ["svg"])["svg"].decode()

    def chart(self) -> str:
        """Return an SVG for web pages: in the style of papers, without a background, and quick: laid out once."""
        with _settings(Style.PAPER):
            figure = self.figure(Style.PAPER)
            figure.patch.set_visible(False)
            for axes in figure.axes:
                axes.patch.set_visible(False)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            _hide_crowded_labels(figure)
            return self._file(figure, "svg").decode()

    def figure(self, style: Style) -> "Figure":
        """Return matplotlib's figure, with the title on a screen, in the present settings of matplotlib."""
        from matplotlib.figure import Figure

        width, height = self.size(style)
        figure = Figure(figsize=(width, height), layout="constrained")
        if style is Style.SCREEN:
            figure.suptitle(_in_lines(literal(self.title), max(20, int(width * 11))), fontsize=11)
        self.draw(figure, style)
        return figure

    def _file(self, figure: "Figure", kind: str) -> bytes:
        title, description = plain(self.title, 400), plain(self.description, 4000)
        # No dates and versions, so that the same record gives the same bytes.
        metadata: dict[str, Mapping[str, Any]] = {
            "svg": {"Title": title, "Description": description, "Date": None, "Creator": None},
            "pdf": {"Title": title, "Subject": description, "CreationDate": None, "Creator": None, "Producer": None},
            "png": {"Title": title, "Description": description, "Software": None},
        }
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=dict(metadata[kind]))
        return content.getvalue()


def _hide_crowded_labels(figure: "Figure") -> None:
    """Hide labels below x-axes that would touch others; those of powers of ten stay. The layout must be final."""
    for axes in figure.axes:
        if axes.name == "3d":
            continue
        # Rotated labels reach over one another without touching.
        labels = [label for label in axes.get_xticklabels() if label.get_text() and label.get_rotation() == 0]
        labels.sort(key=lambda label: (re.fullmatch(r"[0.]*10*", label.get_text()) is None, label.get_window_extent().x0))
        shown: list[tuple[float, float]] = []
        for label in labels:
            box = label.get_window_extent().padded(_GAP * figure.dpi)
            if any(start < box.x1 and box.x0 < end for start, end in shown):
                label.set_visible(False)
            else:
                shown.append((box.x0, box.x1))


def _in_lines(title: str, letters: int) -> str:
    """Break a title that is longer than a line of so many letters: after its first colon, then anywhere."""
    title = title.replace(" = ", "\u00a0=\u00a0")
    subject, colon, setting = title.partition(": ")
    parts = [title] if len(title) <= letters or not colon else [f"{subject}:", setting]
    return "\n".join(textwrap.fill(part, letters) for part in parts)


def literal(text: str) -> str:
    """Return a name on record as text in which nothing is read as a formula."""
    return plain(text).replace("$", r"\$")


def colour_of(number: int) -> str:
    """Return the colour of the curve with this number."""
    return COLOURS[number % len(COLOURS)]


def marker_of(number: int) -> str:
    """Return the marker of the points on the curve with this number."""
    return MARKERS[number % len(MARKERS)]


def dashes_of(number: int) -> Dashes:
    """Return the dashes of the curve with this number."""
    return DASHES[number // len(COLOURS) % len(DASHES)]


@contextmanager
def _settings(style: Style) -> Iterator[None]:
    """Apply matplotlib's own defaults, whatever the user's are, and the style's settings."""
    import matplotlib as mpl

    paper = style is Style.PAPER
    with mpl.rc_context(), warnings.catch_warnings():
        # Names on record may hold characters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "font.size": 8 if paper else 10,
                "axes.titlesize": 8 if paper else 10,
                "axes.labelsize": 8 if paper else 10,
                "xtick.labelsize": 7 if paper else 9,
                "ytick.labelsize": 7 if paper else 9,
                "legend.fontsize": 7 if paper else 9,
                "legend.frameon": False,
                "lines.linewidth": 1.0 if paper else 1.6,
                "lines.markersize": 3.0 if paper else 4.0,
                "axes.linewidth": 0.6 if paper else 0.8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": "#e0e0e0",
                "grid.linewidth": 0.6,
                "savefig.dpi": 300 if paper else 150,
                "svg.fonttype": "path",
                "svg.hashsalt": "kwbench",
                "pdf.fonttype": 42,
            }
        )
        yield
