"""All results as CSV, for spreadsheets."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str]:
    from kwbench.report.tables import csv_table

    return {"results.csv": csv_table(data.summaries)}


FORMAT = Format("csv", "One row for each evaluation and attack", ("results.csv",), _render)
