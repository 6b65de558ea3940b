"""Figures of the experiments on record."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str]:
    from kwbench.report.figures import figure_files, figures_html

    return {"figures.html": figures_html(data.figures), **figure_files(data.figures)}


FORMAT = Format("figures", "Every experiment on record as a figure", ("figures.html", "figures/*.svg"), _render)
