"""Pages from templates: self-contained ones, or pages of a folder that share style and scripts. None loads from the network."""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kwbench.formatting import count_text, duration_text, plain

_FOLDER = Path(__file__).resolve().parent
_STYLE = "kwbench.css"
# The style of what uPlot draws, which only pages in a folder have.
_CHARTS = "uplot.min.css"

# Title of each page that may be written, by its file. Pages link to one another.
PAGES = {
    "index.html": "Leaderboard",
    "compare.html": "Compare",
    "claims.html": "Claims",
    "figures.html": "Figures",
}


def rendered(template: str, *, pages: Sequence[str] = (), scripts: Sequence[str] = (), **values: Any) -> str:
    """Render a template as a self-contained page, with the style and scripts of `assets` in it.

    Args:
        template: The template's file.
        pages: The pages of `PAGES` beside it, which it links to.
        scripts: Names of files in `assets`.
        values: The template's variables.
    """
    style, sources = asset(_STYLE), [asset(name) for name in scripts]
    return (
        _environment()
        .get_template(template)
        .render(
            root="",
            style=Markup(style),
            scripts=[Markup(source) for source in sources],
            linked=None,
            style_source=Markup(f"'{_csp_hash(style)}'"),
            script_source=Markup(" ".join(f"'{_csp_hash(source)}'" for source in sources) or "'none'"),
            pages=_links(pages),
            **values,
        )
    )


def rendered_in_folder(
    template: str,
    *,
    pages: Sequence[str],
    scripts: Sequence[str] = (),
    below: bool = False,
    data: Sequence[str] = (),
    **values: Any,
) -> str:
    """Render a template as a page of a folder, which takes style and scripts from the folder's `assets`; see `rendered`.

    `below`: the page lies in a folder of its own, beside `assets`. `data` are the addresses of scripts that follow `scripts`.
    """
    root = "../" if below else ""
    return (
        _environment()
        .get_template(template)
        .render(
            root=root,
            style=None,
            scripts=[],
            linked=[*(f"{root}assets/{name}" for name in scripts), *data],
            style_source=Markup("'self'"),
            script_source=Markup("'self'"),
            pages=_links(pages),
            **values,
        )
    )


def asset_files(scripts: Sequence[str]) -> dict[str, str]:
    """Return the files that pages of a folder share, by path: the styles, and these scripts."""
    return {f"assets/{name}": asset(name) for name in (_STYLE, _CHARTS, *scripts)}


@cache
def asset(name: str) -> str:
    """Return the text of a file in `assets`."""
    return (_FOLDER / "assets" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    # Always escape: select_autoescape goes by the file's name and would leave *.html.j2 unescaped.
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": count_text, "duration": duration_text, "symbols": symbols}
    return environment


def symbols(text: str) -> Markup:
    """Return a text with A_std and A_rob as symbols."""
    return Markup(re.sub("A_(std|rob)", r"A<sub>\1</sub>", str(escape(plain(text)))))


def _links(pages: Sequence[str]) -> list[tuple[str, str]]:
    return [(file, title) for file, title in PAGES.items() if file in pages]


def _finalize(value: Any) -> Any:
    """Jinja applies this to everything that a template prints."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return plain(value)
    return value


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
