"""Reports: a web page, Markdown, CSV, LaTeX and figures, from the record alone. Equal records give equal bytes."""

# The command line imports this package for its help; heavy imports wait until a report is written.
import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kwbench.errors import UsageError, did_you_mean
from kwbench.files import write_whole
from kwbench.report.drawing.picture import Style
from kwbench.report.formats import DEFAULT, FORMATS, Format

if TYPE_CHECKING:
    from kwbench.record.store import Store

__all__ = ["DEFAULT", "FORMATS", "Format", "write_report"]


def write_report(store: "Store", folder: Path, formats: Collection[str], style: Style = Style.SCREEN) -> list[Path]:
    """Write the report of everything on record in these formats, names of `FORMATS`, and return the files written.

    `style` is that of the figures. Each file is written whole or not at all. The order is that of `FORMATS`, whatever the
    order of the names.

    Raises:
        UsageError: A format is unknown.
        CannotEvaluate: The folder cannot be written.
        DamagedData: The record is damaged.
    """
    from kwbench.report.data import ReportData

    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"format {name!r} is unknown; {did_you_mean(name, FORMATS)}")
    # Two formats may write the same file.
    written: dict[Path, None] = {}
    with _without_garbage_collection():
        data = ReportData(store, {file for name in formats for file in FORMATS[name].files}, style)
        for name, report_format in FORMATS.items():
            if name in formats:
                for file, content in report_format.render(data).items():
                    write_whole(folder / file, content)
                    written[folder / file] = None
    return list(written)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection: a large record is millions of objects without cycles, and scanning them takes a quarter of
    the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
