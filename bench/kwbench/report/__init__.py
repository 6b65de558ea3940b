"""Reports: a web page, Markdown, CSV and LaTeX, from the record alone. Equal records give equal bytes."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from kwbench.errors import UsageError, did_you_mean
from kwbench.files import write_whole
from kwbench.report.leaderboard import Board, boards
from kwbench.report.page import html_page
from kwbench.report.tables import csv_table, latex_tables, markdown_page
from kwbench.report.terminal import findings_table, text_table
from kwbench.report.verdicts import verdicts_page
from kwbench.standing import Standing, standings
from kwbench.store import Store

Format = Literal["html", "markdown", "csv", "latex", "verdicts"]

_FILES: dict[str, tuple[str, Callable[[list[Board], list[Standing]], str]]] = {
    "html": ("index.html", lambda tables, _: html_page(tables)),
    "markdown": ("leaderboard.md", lambda tables, _: markdown_page(tables)),
    "csv": ("results.csv", lambda _, found: csv_table(found)),
    "latex": ("tables.tex", lambda tables, _: latex_tables(tables)),
    "verdicts": ("verdicts.md", lambda tables, _: verdicts_page(tables)),
}

__all__ = ["Format", "boards", "findings_table", "text_table", "write_report"]


def write_report(store: Store, folder: Path, formats: Collection[str]) -> list[Path]:
    """Write the report of all that is on record, each file whole or not at all, and return the files.

    html: index.html, one self-contained page. markdown: leaderboard.md. csv: results.csv, one row for each evaluation and
    attack. latex: tables.tex, for booktabs. verdicts: verdicts.md, the evidence behind each verdict.

    Raises:
        UsageError: an unknown format.
        CannotEvaluate: the folder cannot be written.
        DamagedData: the record is damaged.
    """
    for each in formats:
        if each not in _FILES:
            raise UsageError(f"format {each!r} is unknown; {did_you_mean(each, _FILES)}")
    found = standings(store)
    tables = boards(found)
    written = []
    for each, (name, render) in _FILES.items():
        if each in formats:
            written.append(folder / name)
            write_whole(folder / name, render(tables, found))
    return written
