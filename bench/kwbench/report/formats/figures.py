"""Figures of the experiments on record."""

from typing import TYPE_CHECKING

from kwbench.report.formats.format import Format

if TYPE_CHECKING:
    from kwbench.report.data import ReportData


def _render(data: "ReportData") -> dict[str, str | bytes]:
    from kwbench.report.figures import figure_files, figures_html

    files = figure_files(data.figures, data.style)
    return {"figures.html": figures_html(data.figures, files, tuple(data.pages)), **files}


_FILES = ("figures.html", "figures/*.svg", "figures/*.pdf", "figures/*.png")
FORMAT = Format("figures", "Every experiment on record as a figure", _FILES, _render)
