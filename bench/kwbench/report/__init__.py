"""Reports: a web page, Markdown, CSV and LaTeX, from the record alone. Equal records give equal bytes."""

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Literal

from kwbench.claims import Comparison, Remark, comparisons, lint, read_claims
from kwbench.errors import UsageError, did_you_mean
from kwbench.files import write_whole
from kwbench.report.claims import claims_html, claims_markdown, claims_table
from kwbench.report.curves import Curve, curves_svg, sweep_table
from kwbench.report.figures import Figure, figure_files, figures, figures_html
from kwbench.report.leaderboard import Board, boards
from kwbench.report.page import html_page
from kwbench.report.tables import csv_table, latex_tables, markdown_page
from kwbench.report.terminal import findings_table, text_table
from kwbench.report.verdicts import verdicts_page
from kwbench.standing import Standing, standings
from kwbench.store import Store

Format = Literal["html", "markdown", "csv", "latex", "verdicts", "claims", "figures"]


class _Record:
    """What is on record, in the forms that reports want, each worked out when it is first asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @cached_property
    def standings(self) -> list[Standing]:
        return standings(self.store)

    @cached_property
    def boards(self) -> list[Board]:
        return boards(self.standings)

    @cached_property
    def claims(self) -> tuple[list[Comparison], list[Remark]]:
        known = read_claims()
        return comparisons(known, self.store), lint(known)

    @cached_property
    def figures(self) -> list[Figure]:
        return figures(self.store.experiments(), self.standings, self.boards)


_FILES: dict[Format, dict[str, Callable[[_Record], str]]] = {
    "html": {"index.html": lambda record: html_page(record.boards)},
    "markdown": {"leaderboard.md": lambda record: markdown_page(record.boards)},
    "csv": {"results.csv": lambda record: csv_table(record.standings)},
    "latex": {"tables.tex": lambda record: latex_tables(record.boards)},
    "verdicts": {"verdicts.md": lambda record: verdicts_page(record.boards)},
    "claims": {
        "claims.md": lambda record: claims_markdown(*record.claims),
        "claims.html": lambda record: claims_html(*record.claims),
    },
    "figures": {"figures.html": lambda record: figures_html(record.figures)},
}

__all__ = [
    "Curve",
    "Format",
    "boards",
    "claims_table",
    "curves_svg",
    "figure_files",
    "figures",
    "findings_table",
    "sweep_table",
    "text_table",
    "write_report",
]


def write_report(store: Store, folder: Path, formats: Collection[str]) -> list[Path]:
    """Write the report of all that is on record, each file whole or not at all, and return the files.

    html: index.html, one self-contained page. markdown: leaderboard.md. csv: results.csv, one row for each evaluation and
    attack. latex: tables.tex, for booktabs. verdicts: verdicts.md, the evidence behind each verdict. claims: claims.md and
    claims.html, the papers' claims beside what was measured. figures: figures.html, and each figure as a file in figures/.

    Raises:
        UsageError: an unknown format.
        CannotEvaluate: the folder cannot be written.
        DamagedData: the record is damaged.
    """
    for each in formats:
        if each not in _FILES:
            raise UsageError(f"format {each!r} is unknown; {did_you_mean(each, _FILES)}")
    record = _Record(store)
    written = []
    for each, files in _FILES.items():
        for name, render in files.items() if each in formats else ():
            written.append(folder / name)
            write_whole(folder / name, render(record))
    if "figures" in formats:
        for name, svg in figure_files(record.figures).items():
            written.append(folder / name)
            write_whole(folder / name, svg)
    return written
