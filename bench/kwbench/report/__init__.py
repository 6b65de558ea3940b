"""Reports: a web page, Markdown, CSV and LaTeX, from the record alone. Equal records give equal bytes."""

# Formats are imported as they are asked for: a page must not wait for pandas, nor for the claims' YAML.
import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kwbench.errors import UsageError, did_you_mean
from kwbench.files import write_whole
from kwbench.record.store import Store
from kwbench.record.summary import Summary, summaries
from kwbench.report.leaderboard import Board, boards

if TYPE_CHECKING:
    from kwbench.claims import Comparison, Remark
    from kwbench.report.figures import Figure

Format = Literal["html", "markdown", "csv", "latex", "verdicts", "claims", "figures"]

__all__ = ["Format", "write_report"]


class _Record:
    """What is on record, in the forms that reports want, each worked out when it is first asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @cached_property
    def standings(self) -> list[Summary]:
        return summaries(self.store)

    @cached_property
    def boards(self) -> list[Board]:
        return boards(self.standings)

    @cached_property
    def claims(self) -> "tuple[list[Comparison], list[Remark], list[Summary]]":
        from kwbench.claims import comparisons, lint, read_claims, unclaimed

        known = read_claims()
        found = comparisons(known, self.store, on_record=self.standings)
        return found, lint(known), unclaimed(known, self.standings)

    @cached_property
    def figures(self) -> "list[Figure]":
        from kwbench.report.figures import figures

        return figures(self.store.experiments(), self.standings, self.boards)


def _html(record: _Record) -> str:
    from kwbench.report.page import html_page

    return html_page(record.boards)


def _markdown(record: _Record) -> str:
    from kwbench.report.tables import markdown_page

    return markdown_page(record.boards)


def _csv(record: _Record) -> str:
    from kwbench.report.tables import csv_table

    return csv_table(record.standings)


def _latex(record: _Record) -> str:
    from kwbench.report.tables import latex_tables

    return latex_tables(record.boards)


def _verdicts(record: _Record) -> str:
    from kwbench.report.verdicts import verdicts_page

    return verdicts_page(record.boards)


def _claims_markdown(record: _Record) -> str:
    from kwbench.report.claims import claims_markdown

    return claims_markdown(*record.claims)


def _claims_html(record: _Record) -> str:
    from kwbench.report.claims import claims_html

    return claims_html(*record.claims)


def _figures(record: _Record) -> str:
    from kwbench.report.figures import figures_html

    return figures_html(record.figures)


_FILES: dict[Format, dict[str, Callable[[_Record], str]]] = {
    "html": {"index.html": _html},
    "markdown": {"leaderboard.md": _markdown},
    "csv": {"results.csv": _csv},
    "latex": {"tables.tex": _latex},
    "verdicts": {"verdicts.md": _verdicts},
    "claims": {"claims.md": _claims_markdown, "claims.html": _claims_html},
    "figures": {"figures.html": _figures},
}


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
    written = []
    with _no_collections():
        record = _Record(store)
        for each, files in _FILES.items():
            for name, render in files.items() if each in formats else ():
                written.append(folder / name)
                write_whole(folder / name, render(record))
        if "figures" in formats:
            from kwbench.report.figures import figure_files

            for name, svg in figure_files(record.figures).items():
                written.append(folder / name)
                write_whole(folder / name, svg)
    return written


@contextmanager
def _no_collections() -> Iterator[None]:
    """A large record is millions of objects without cycles; looking through them for garbage takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
