"""The leaderboards as web pages: a folder, or one file."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str]:
    from kwbench.report.html import site

    return site(data)


def _render_single_file(data: "ReportData") -> dict[str, str]:
    from kwbench.report.html import leaderboard_page

    return {"leaderboard.html": leaderboard_page(data)}


FORMAT = Format(
    "html",
    "The leaderboard as web pages, with a page for each evaluation",
    ("index.html", "compare.html", "runs/*", "assets/*", "results.csv", "results.json"),
    _render,
)
SINGLE_FILE = Format(
    "single-file",
    "The leaderboard as one web page, without those of the evaluations",
    ("leaderboard.html",),
    _render_single_file,
)
