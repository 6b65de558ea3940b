"""The leaderboard as Markdown, for a repository."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str]:
    from kwbench.report.tables import markdown_page

    return {"leaderboard.md": markdown_page(data.boards)}


FORMAT = Format("markdown", "The leaderboard as Markdown tables", ("leaderboard.md",), _render)
