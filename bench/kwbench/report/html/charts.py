"""Charts on pages: pictures by matplotlib as images, whose colours follow the theme of the page."""

import base64

from markupsafe import Markup

from kwbench.formatting import plain
from kwbench.report.drawing.picture import Picture, Style

# What each colour of a picture becomes in dark mode. Black is also the colour of what names none.
_DARK = {
    "#000000": "#e7eaed",
    "#e0e0e0": "#2f363d",
    "#0072b2": "#5fb8f2",
    "#d55e00": "#ff9a52",
    "#009e73": "#4fd0a4",
    "#cc79a7": "#eba3cc",
}
_RULES = "".join(
    f'[style*="{part}: {light}"] {{ {part}: {dark} !important }} '
    for light, dark in _DARK.items()
    for part in ("fill", "stroke")
)
_STYLE = f"<style>@media (prefers-color-scheme: dark) {{ svg {{ fill: {_DARK['#000000']} }} {_RULES}}}</style>"
# Pixels of the page per inch of a picture: 8 points are as large as the text of the page.
_SCALE = 130


def chart_image(picture: Picture) -> Markup:
    """Return a picture as an image of a page."""
    width, _ = picture.size(Style.PAPER)
    head, tag, rest = picture.chart().partition("<defs>")
    svg = f"{head}{_STYLE}{tag}{rest}"
    encoded = base64.b64encode(svg.encode()).decode()
    return Markup('<img class="chart" alt="{}" width="{}" src="data:image/svg+xml;base64,{}">').format(
        plain(picture.title, 400), round(_SCALE * width), encoded
    )
