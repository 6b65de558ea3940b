"""Pixel images, embedded into SVG files as PNG."""

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwbench.record.measurement import Array
from kwbench.report.svg.drawing import SOFT, document, text

_TILE, _GAP, _HEAD = 64.0, 10.0, 40.0
_ROW = _TILE + 34


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


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode red, green and blue (h, w, 3) as a PNG file."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + np.ascontiguousarray(row).tobytes() for row in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def image(pixels: NDArray[np.uint8], x: float, y: float, width: float, height: float) -> str:
    """Return the pixels as an SVG element, enlarged without smoothing."""
    content = base64.b64encode(png(pixels)).decode()
    return (
        f'<image x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" preserveAspectRatio="none" '
        f'image-rendering="pixelated" href="data:image/png;base64,{content}"/>'
    )


def gallery_svg(title: str, strips: Sequence[Strip], *, description: str = "") -> str:
    """Draw a row of pairs for each attack, clean image left, attacked image right. Raises ValueError without any example."""
    most = max((len(strip.examples) for strip in strips), default=0)
    if not most:
        raise ValueError("there is nothing to draw")
    parts: list[str] = []
    top = _HEAD
    for strip in strips:
        if strip.examples:
            parts.append(f'<text x="16" y="{top + 12:g}" font-weight="600">{text(strip.title)}</text>')
            parts += _strip(strip, top + 20)
            top += _ROW + 20
    return document(max(16 + most * (2 * _TILE + 4 + 2 * _GAP), 480.0), top + 4, title, parts, description)


def _strip(strip: Strip, top: float) -> Iterator[str]:
    for position, example in enumerate(strip.examples):
        left = 16 + position * (2 * _TILE + 4 + 2 * _GAP)
        for x, pixels, caption, colour in (
            (left, example.before, example.captions[0], SOFT),
            (left + _TILE + 4, example.after, example.captions[1], "#b3261e" if example.wrong else "#0b6e6e"),
        ):
            yield image(_colours(pixels), x, top, _TILE, _TILE)
            anchor = f'x="{x + _TILE / 2:g}" y="{top + _TILE + 14:g}"'
            yield f'<text {anchor} text-anchor="middle" font-size="11" fill="{colour}">{text(caption)}</text>'


def _colours(pixels: Array) -> NDArray[np.uint8]:
    """Convert (c, h, w) in [0, 1] to (h, w, 3) bytes; unless there are three channels, the first is shown as grey."""
    channels = pixels if pixels.shape[0] == 3 else np.repeat(pixels[:1], 3, axis=0)
    rounded: NDArray[np.uint8] = np.rint(255 * np.clip(np.nan_to_num(channels), 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return rounded
