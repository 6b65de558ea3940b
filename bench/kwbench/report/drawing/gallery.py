"""Pairs of clean and attacked images, with what the model says about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kwbench.record.measurement import Array
from kwbench.report.drawing.picture import PAGE, Picture, Style, literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Example:
    """A clean and an attacked image (c, h, w), pixels in [0, 1], with their captions. `wrong`: the attack fooled the model."""

    before: Array
    after: Array
    captions: tuple[str, str]
    wrong: bool


@dataclass(frozen=True, slots=True)
class Strip:
    """The examples of one attack."""

    title: str
    examples: tuple[Example, ...]


def gallery_picture(title: str, strips: Sequence[Strip], *, description: str = "") -> Picture:
    """Return a row of pairs for each attack, clean image left, attacked image right. Raises ValueError without any example."""
    shown = [strip for strip in strips if strip.examples]
    most = max((len(strip.examples) for strip in shown), default=0)
    if not most:
        raise ValueError("there is nothing to draw")
    lines = max(caption.count("\n") + 1 for strip in shown for one in strip.examples for caption in one.captions)

    def tile(style: Style) -> tuple[float, float]:
        """Side of an image and height of a row, in inches."""
        side = (PAGE - 0.1) / (2 * most) - 0.1 if style is Style.PAPER else 1.25
        return min(side, 1.25), min(side, 1.25) + 0.28 + lines * (0.13 if style is Style.PAPER else 0.16)

    def size(style: Style) -> tuple[float, float]:
        side, row = tile(style)
        return 0.1 + 2 * most * (side + 0.1), row * len(shown) + (0.5 if style is Style.SCREEN else 0.0)

    def draw(figure: "Figure", style: Style) -> None:
        figure.set_layout_engine("none")
        (side, row), (width, height) = tile(style), size(style)
        for heading in figure.texts:
            heading.set_y(1 - 0.07 / height)
        top = height - (0.4 if style is Style.SCREEN else 0.0)
        for strip in shown:
            figure.text(0.1 / width, (top - 0.04) / height, literal(strip.title), va="top", weight="bold")
            for position, one in enumerate(strip.examples):
                for second, pixels in enumerate((one.before, one.after)):
                    left = 0.1 + (2 * position + second) * (side + 0.1) - 0.05 * second
                    axes = figure.add_axes((left / width, (top - 0.24 - side) / height, side / width, side / height))
                    axes.imshow(_colours(pixels), cmap="gray", vmin=0, vmax=1, interpolation="none")
                    axes.set_axis_off()
                    colour = "black" if not second else "#b3261e" if one.wrong else "#0b6e6e"
                    size_of_text = "small" if style is Style.SCREEN else 6.5
                    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "top", "fontsize": size_of_text}
                    axes.text(0.5, -0.03, one.captions[second], color=colour, **place)
            top -= row

    return Picture(title, description, size, draw)


def _colours(pixels: Array) -> Array:
    """Convert (c, h, w) to (h, w, 3), or to (h, w) unless there are three channels; then the first is shown as grey."""
    clipped = np.clip(np.nan_to_num(pixels), 0, 1)
    colours: Array = clipped.transpose(1, 2, 0) if len(clipped) == 3 else clipped[0]
    return colours
