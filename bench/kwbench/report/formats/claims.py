"""The papers' claims beside the measured accuracies."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str]:
    from kwbench.report.claims import claims_html, claims_markdown

    return {"claims.md": claims_markdown(*data.claims), "claims.html": claims_html(*data.claims, pages=tuple(data.pages))}


FORMAT = Format("claims", "The papers' claims beside the measured accuracies", ("claims.md", "claims.html"), _render)
