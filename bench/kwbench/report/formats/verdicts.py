"""The verdicts with the evidence behind each."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str]:
    from kwbench.report.verdicts import verdicts_page

    return {"verdicts.md": verdicts_page(data.boards)}


FORMAT = Format("verdicts", "The verdicts with their evidence", ("verdicts.md",), _render)
