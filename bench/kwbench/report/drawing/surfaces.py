"""Loss landscapes: 3-D surfaces, and maps. All surfaces of a picture share their colours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kwbench.record.measurement import Array
from kwbench.report.drawing.picture import COLUMN, PAGE, SOFT, Picture, Style, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator


@dataclass(frozen=True, slots=True)
class Surface:
    """Values (m, m) at coordinates `e` (m,) along both axes; `right` (m, m) is 1 where the prediction is correct, else 0."""

    name: str
    e: Array
    values: Array
    right: Array
    note: str = ""


def surfaces_picture(title: str, drawn: Sequence[Surface], *, unit: str = "", description: str = "") -> Picture:
    """Return surfaces side by side, each with its own height, drawn as pixels. Raises ValueError without any surface.

    `unit` follows the symbols of the axes.
    """

    def draw(axes: "Axes", surface: Surface, colours: "ScalarMappable") -> None:
        across, along = np.meshgrid(surface.e, surface.e, indexing="ij")
        axes.plot_surface(  # type: ignore[attr-defined]
            across,
            along,
            surface.values,
            cmap=colours.get_cmap(),
            norm=colours.norm,
            rstride=1,
            cstride=1,
            linewidth=0,
            antialiased=False,
            rasterized=True,
        )
        axes.view_init(elev=28, azim=-52)  # type: ignore[attr-defined]
        axes.set_box_aspect((1, 1, 0.85), zoom=0.95)  # type: ignore[arg-type,call-arg]
        axes.tick_params(pad=-2)
        axes.tick_params(axis="z", pad=2)  # type: ignore[arg-type]
        axes.set_xlabel(rf"$\epsilon_1${unit}", labelpad=-4)
        axes.set_ylabel(rf"$\epsilon_2${unit}", labelpad=-4)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_few_ticks())
        axes.zaxis.set_major_locator(_few_ticks())  # type: ignore[attr-defined]

    return _side_by_side(title, drawn, draw, "3d", description)


def maps_picture(title: str, drawn: Sequence[Surface], *, unit: str = "", description: str = "") -> Picture:
    """Return surfaces as maps, bright where values are high, with lines between correct and wrong predictions.

    Raises ValueError without any surface. `unit` follows the symbols of the axes.
    """

    def draw(axes: "Axes", surface: Surface, colours: "ScalarMappable") -> None:
        edge = float(surface.e[-1]) * len(surface.e) / (len(surface.e) - 1)
        axes.imshow(
            surface.values.T,
            origin="lower",
            extent=(-edge, edge, -edge, edge),
            cmap=colours.get_cmap(),
            clim=colours.get_clim(),
            interpolation="none",
        )
        if 0 < surface.right.mean() < 1:
            axes.contour(surface.e, surface.e, surface.right.T, levels=[0.5], colors="white", linewidths=0.9)
        axes.grid(visible=False)
        axes.set_xlabel(rf"$\epsilon_1${unit}")
        axes.set_ylabel(rf"$\epsilon_2${unit}")
        axes.xaxis.set_major_locator(_few_ticks())
        axes.yaxis.set_major_locator(_few_ticks())

    return _side_by_side(title, drawn, draw, None, description)


def _few_ticks() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _side_by_side(
    title: str,
    drawn: Sequence[Surface],
    draw_one: "Callable[[Axes, Surface, ScalarMappable], None]",
    projection: str | None,
    description: str,
) -> Picture:
    if not drawn:
        raise ValueError("there is nothing to draw")
    columns = min(len(drawn), 3 if len(drawn) in (3, 5, 6) else 4)
    rows = math.ceil(len(drawn) / columns)

    def size(style: Style) -> tuple[float, float]:
        if style is Style.PAPER:
            width = COLUMN if columns < 3 else PAGE
            return width, rows * (width / columns + 0.35)
        return 3.0 * columns + 0.6, (3.2 if projection else 3.6) * rows + 0.3

    def draw(figure: "Figure", style: Style) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        low, high = min(float(one.values.min()) for one in drawn), max(float(one.values.max()) for one in drawn)
        colours = ScalarMappable(Normalize(low, high), "viridis")
        used = []
        for position, surface in enumerate(drawn):
            axes = figure.add_subplot(rows, columns, position + 1, projection=projection)
            # An empty line leaves room for the note.
            axes.set_title(literal(surface.name) + ("\n" if surface.note and style is Style.SCREEN else ""))
            if surface.note and style is Style.SCREEN:
                place: dict[str, Any] = {"x": 0.5, "y": 1.02, "ha": "center", "va": "bottom", "fontsize": 7.5, "color": SOFT}
                write = getattr(axes, "text2D", axes.text)
                write(s=literal(surface.note), transform=axes.transAxes, **place)
            draw_one(axes, surface, colours)
            used.append(axes)
        figure.colorbar(colours, ax=used, label="loss", shrink=0.7, pad=0.06 if projection else 0.02)

    return Picture(title, description, size, draw)
