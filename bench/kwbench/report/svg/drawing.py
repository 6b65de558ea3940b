"""Colours, strokes, text and the frame of a self-contained SVG file."""

from collections.abc import Sequence

from markupsafe import escape

from kwbench.formatting import plain

# The colours of Okabe and Ito, which colour-blind readers can distinguish; dashes for prints without colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")

GRID, INK, SOFT = "#e0e0e0", "#1b1f24", "#555555"

# Nine equidistant colours of viridis (Smith and van der Walt, CC0), interpolated linearly.
_VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")


def colour_of(number: int) -> str:
    """Return the colour of the curve with this number."""
    return COLOURS[number % len(COLOURS)]


def stroke(number: int, width: float = 2.0) -> str:
    """Return the stroke attributes of the curve with this number."""
    dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="{colour_of(number)}" stroke-width="{width:g}"{dashes}'


def text(words: str) -> str:
    """Return words escaped for XML, control characters made visible."""
    return str(escape(plain(words)))


def document(width: float, height: float, title: str, parts: Sequence[str], description: str = "") -> str:
    """Return an SVG file with a white background, at least as wide as its title.

    `description` names the runs that its numbers come from.
    """
    width = max(width, 32 + 8.4 * len(title))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            f'font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="{text(title)}">',
            *([f"<desc>{escape(plain(description, 4000))}</desc>"] if description else []),
            f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
            f'<text x="16" y="24" font-size="15" font-weight="600">{text(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


def viridis(share: float) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, for a value from 0 (dark) to 1 (bright)."""
    position = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low = min(int(position), len(_VIRIDIS) - 2)
    first, second = (bytes.fromhex(_VIRIDIS[low + step]) for step in (0, 1))
    red, green, blue = (round(a + (b - a) * (position - low)) for a, b in zip(first, second, strict=True))
    return red, green, blue
