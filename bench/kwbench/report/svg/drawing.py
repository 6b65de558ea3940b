"""What all pictures share: colours, strokes, text, axes, and an SVG file that loads nothing."""

from collections.abc import Sequence

from markupsafe import escape

from kwbench.formatting import plain

# Okabe and Ito's colours, which the colour-blind can tell apart; and dashes, for print without colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")

GRID, INK, SOFT = "#e0e0e0", "#1b1f24", "#555555"

# Nine colours of viridis (Smith and van der Walt, CC0), equally far apart; between them straight lines.
_VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")


def colour_of(number: int) -> str:
    """The colour of the curve with this number."""
    return COLOURS[number % len(COLOURS)]


def stroke(number: int, width: float = 2.0) -> str:
    """The attributes of the curve with this number."""
    dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="{colour_of(number)}" stroke-width="{width:g}"{dashes}'


def text(words: str) -> str:
    """Words that XML shows as they are."""
    return str(escape(plain(words)))


def document(width: float, height: float, title: str, parts: Sequence[str], description: str = "") -> str:
    """An SVG file of this size, or as wide as its title, on white; `description` says where its numbers come from."""
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
    """Red, green and blue, 0 to 255, of a share from 0 (dark) to 1 (bright)."""
    place = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    low = min(int(place), len(_VIRIDIS) - 2)
    first, second = (bytes.fromhex(_VIRIDIS[low + step]) for step in (0, 1))
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(first, second, strict=True))
    return red, green, blue
