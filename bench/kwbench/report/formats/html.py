"""The leaderboard as a web page."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str]:
    from kwbench.report.page import html_page

    return {"index.html": html_page(data.boards)}


FORMAT = Format("html", "The leaderboard as one self-contained web page", ("index.html",), _render)
