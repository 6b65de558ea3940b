"""The formats of the report, by name of the option. A new one is a file in this folder and a line here."""

from kwbench.report.formats import claims, csv, figures, html, latex, markdown, verdicts
from kwbench.report.formats.format import Format

__all__ = ["DEFAULT", "FORMATS", "Format"]

FORMATS: dict[str, Format] = {
    "html": html.FORMAT,
    "single-file": html.SINGLE_FILE,
    "markdown": markdown.FORMAT,
    "csv": csv.FORMAT,
    "latex": latex.FORMAT,
    "verdicts": verdicts.FORMAT,
    "claims": claims.FORMAT,
    "figures": figures.FORMAT,
}

# What `kwbench report` writes if no format is named.
DEFAULT = "html"
