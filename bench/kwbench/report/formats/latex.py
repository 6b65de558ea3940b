"""The leaderboard as LaTeX, for papers."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str]:
    from kwbench.report.latex import latex_tables
    from kwbench.report.tables import BOUND

    return {"tables.tex": latex_tables(data.boards, BOUND.partition(". ")[0] + ".")}


FORMAT = Format("latex", "Tables for the LaTeX package booktabs", ("tables.tex",), _render)
