"""Loss landscapes: 3-D surfaces, drawn as polygons from back to front, and maps."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kwbench.record.measurement import Array
from kwbench.report.svg.axis import tick_text
from kwbench.report.svg.drawing import INK, SOFT, document, text, viridis
from kwbench.report.svg.pixels import image

_SIZE, _HEAD, _FOOT = 320.0, 40.0, 24.0

# The direction from which a surface is seen, and its height relative to its width.
_AZIMUTH, _ELEVATION = math.radians(-52), math.radians(28)
_RELATIVE_HEIGHT = 0.95


@dataclass(frozen=True, slots=True)
class Surface:
    """Values (m, m) at coordinates `e` (m,) along both axes; `right` (m, m) is 1 where the prediction is correct, else 0."""

    name: str
    e: Array
    values: Array
    right: Array
    note: str = ""


def surfaces_svg(title: str, surfaces: Sequence[Surface], *, columns: int = 4, description: str = "") -> str:
    """Draw surfaces side by side, each on its own scale. Raises ValueError without any surface."""
    return _side_by_side(title, surfaces, _surface, columns, description)


def maps_svg(title: str, surfaces: Sequence[Surface], *, columns: int = 4, description: str = "") -> str:
    """Draw surfaces as maps, bright where values are high, with lines between correct and wrong predictions.

    Raises ValueError without any surface.
    """
    return _side_by_side(title, surfaces, _map, columns, description)


def _side_by_side(
    title: str, surfaces: Sequence[Surface], draw: Callable[[Surface], Iterator[str]], columns: int, description: str
) -> str:
    if not surfaces:
        raise ValueError("there is nothing to draw")
    columns = min(columns, len(surfaces))
    row_height = _SIZE + _FOOT
    parts = []
    for position, surface in enumerate(surfaces):
        left, top = _SIZE * (position % columns), _HEAD + row_height * (position // columns)
        parts.append(f'<g transform="translate({left:g} {top:g})">')
        parts += draw(surface)
        middle = f'x="{_SIZE / 2:g}" text-anchor="middle"'
        parts.append(f'<text {middle} y="{_SIZE + 2:g}" font-weight="600">{text(surface.name)}</text>')
        parts.append(f'<text {middle} y="{_SIZE + 17:g}" font-size="11" fill="{SOFT}">{text(surface.note)}</text>')
        parts.append("</g>")
    height = _HEAD + row_height * math.ceil(len(surfaces) / columns)
    return document(max(_SIZE * columns, 480.0), height, title, parts, description)


def _project(u: Array, v: Array, w: Array) -> tuple[Array, Array, Array]:
    """Map u and v in [-1, 1] and w in [0, 1] to x and y on the page and the distance from the viewer."""
    across = u * math.cos(_AZIMUTH) - v * math.sin(_AZIMUTH)
    depth = u * math.sin(_AZIMUTH) + v * math.cos(_AZIMUTH)
    up = depth * math.sin(_ELEVATION) + _RELATIVE_HEIGHT * (2 * w - 1) * math.cos(_ELEVATION)
    scale = _SIZE / 2 * 0.56
    return _SIZE / 2 + 14 + scale * across, _SIZE / 2 - 14 - scale * up, depth


def _surface(surface: Surface) -> Iterator[str]:
    low, high = float(surface.values.min()), float(surface.values.max())
    height = (surface.values - low) / max(high - low, 1e-12)
    coordinates = np.linspace(-1, 1, len(surface.e))
    u, v = np.meshgrid(coordinates, coordinates, indexing="ij")
    x, y, depth = _project(u, v, height)
    yield from _box(surface, low, high)
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    m = len(surface.e) - 1
    far = sum(depth[i : i + m, j : j + m] for i, j in corners)
    mean = sum(height[i : i + m, j : j + m] for i, j in corners) / 4
    yield '<g stroke-width="0.25" stroke-linejoin="round">'
    for flat in np.argsort(-np.asarray(far), axis=None, kind="stable"):
        i, j = divmod(int(flat), m)
        path = "L".join(f"{x[i + a, j + b]:.1f} {y[i + a, j + b]:.1f}" for a, b in corners)
        red, green, blue = viridis(float(np.asarray(mean)[i, j]))
        colour = f"#{red:02x}{green:02x}{blue:02x}"
        yield f'<path d="M{path}Z" fill="{colour}" stroke="{colour}"/>'
    yield "</g>"


def _box(surface: Surface, low: float, high: float) -> Iterator[str]:
    """The floor, the axes and their values. They are drawn first, so that the surface covers them."""

    def at(u: float, v: float, w: float) -> tuple[float, float]:
        x, y, _ = _project(np.array(u), np.array(v), np.array(w))
        return float(x), float(y)

    def line(*points: tuple[float, float, float]) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*point) for point in points))

    floor = line((-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)) + "Z"
    upright = "".join(line((u, v, 0), (u, v, 1)) for u, v in ((-1, -1), (-1, 1), (1, 1)))
    ceiling = line((-1, -1, 1), (-1, 1, 1), (1, 1, 1))
    yield f'<path d="{floor}{upright}{ceiling}" fill="none" stroke="#c8c8c8"/>'
    radius = float(surface.e[-1])
    for point, label in (
        ((-0.82, -1.3, 0.0), _rounded(-radius)),
        ((0.72, -1.3, 0.0), _rounded(radius)),
        ((1.3, -0.72, 0.0), _rounded(-radius)),
        ((1.3, 0.82, 0.0), _rounded(radius)),
        ((0.0, -1.36, 0.0), "ε₁"),
        ((1.36, 0.0, 0.0), "ε₂"),
    ):
        x, y = at(*point)
        yield f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-size="11" fill="{SOFT}">{text(label)}</text>'
    for share in (0.0, 0.5, 1.0):
        x, y = at(-1, -1, share)
        label = _rounded(low + share * (high - low), high)
        yield f'<text x="{x - 5:.1f}" y="{y + 4:.1f}" text-anchor="end" font-size="11" fill="{SOFT}">{label}</text>'


def _map(surface: Surface) -> Iterator[str]:
    low, high = float(surface.values.min()), float(surface.values.max())
    height = (surface.values - low) / max(high - low, 1e-12)
    m = len(surface.e)
    # ε1 runs to the right, ε2 upwards.
    pixels = height.T[::-1]
    colours = np.array([[viridis(float(value)) for value in row] for row in pixels], dtype=np.uint8)
    left, top, side = 50.0, 24.0, _SIZE - 100
    yield image(colours, left, top, side, side)
    yield f'<path d="{_border(surface.right.T[::-1], left, top, side / m)}" fill="none" stroke="#ffffff" stroke-width="1.4"/>'
    yield f'<rect x="{left:g}" y="{top:g}" width="{side:g}" height="{side:g}" fill="none" stroke="{SOFT}"/>'
    radius = float(surface.e[-1])
    for share in (0.0, 0.5, 1.0):
        label = _rounded(radius * (2 * share - 1))
        x, y = left + share * side, top + (1 - share) * side
        yield f'<text x="{x:.1f}" y="{top + side + 15:g}" text-anchor="middle" font-size="11" fill="{SOFT}">{label}</text>'
        yield f'<text x="{left - 5:g}" y="{y + 4:.1f}" text-anchor="end" font-size="11" fill="{SOFT}">{label}</text>'
    yield f'<text x="{left + side / 2:g}" y="{top + side + 30:g}" text-anchor="middle" font-size="12">ε₁</text>'
    yield f'<text x="12" y="{top + side / 2:g}" font-size="12">ε₂</text>'
    steps = 32
    scale = np.array([[viridis(1 - step / (steps - 1))] for step in range(steps)], dtype=np.uint8)
    yield image(scale, left + side + 8, top, 8, side)
    for share in (0.0, 0.5, 1.0):
        label = _rounded(low + share * (high - low), high)
        y = top + (1 - share) * side + 4
        yield f'<text x="{left + side + 19:g}" y="{y:.1f}" font-size="10" fill="{INK}">{label}</text>'


def _rounded(value: float, scale: float = 0.0) -> str:
    """A value with three digits; 0 if it is below a thousandth of `scale`."""
    return tick_text(0.0 if abs(value) < 1e-3 * abs(scale) else float(f"{value:.3g}"))


def _border(right: Array, left: float, top: float, cell: float) -> str:
    """The path between cells with a correct and with a wrong prediction."""
    segments = []
    for row, column in zip(*np.nonzero(np.diff(right, axis=1)), strict=True):
        segments.append(f"M{left + (column + 1) * cell:.1f} {top + row * cell:.1f}v{cell:.1f}")
    for row, column in zip(*np.nonzero(np.diff(right, axis=0)), strict=True):
        segments.append(f"M{left + column * cell:.1f} {top + (row + 1) * cell:.1f}h{cell:.1f}")
    return "".join(segments)
