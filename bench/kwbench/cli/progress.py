"""How an evaluation in progress looks: a bar with the time left on a terminal, plain lines elsewhere. On stderr, always."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from kwbench.cli.output import printable

if TYPE_CHECKING:
    from kwbench.evaluation.runner import Progress

# A plain line is due when an attack begins or ends, and otherwise this often, in seconds.
_QUIET = 15.0


@contextmanager
def showing(stream: TextIO | None = None) -> "Iterator[Callable[[Progress], None]]":
    """Shows what it is called with until the block ends; on stderr, as it is then."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    if not console.is_terminal:
        yield _plain_lines(stream)
        return
    columns = (
        # Without markup: brackets in a model's name are not colours.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        tasks = {}

        def show(progress: "Progress") -> None:
            if progress.model not in tasks:
                tasks[progress.model] = bar.add_task(printable(progress.model), total=progress.rows_in_all)
            bar.update(
                tasks[progress.model],
                completed=progress.done_in_all,
                total=progress.rows_in_all,
                description=f"{printable(progress.model)}  {progress.label}",
            )

        yield show


def _plain_lines(stream: TextIO) -> "Callable[[Progress], None]":
    began: dict[str, float] = {}
    # Rows that were on record before: what an attack begins with.
    recorded: dict[str, dict[str, int]] = {}
    spoken = 0.0

    def show(progress: "Progress") -> None:
        nonlocal spoken
        now = time.monotonic()
        start = began.setdefault(progress.model, now)
        already = recorded.setdefault(progress.model, {})
        already.setdefault(progress.label, progress.done)
        if 0 < progress.done < progress.samples and now - spoken < _QUIET:
            return
        spoken = now
        fresh = progress.done_in_all - sum(already.values())
        left = (now - start) / fresh * (progress.rows_in_all - progress.done_in_all) if fresh else None
        remaining = "" if left is None else f", about {left:.0f} s left"
        print(
            f"{printable(progress.model)}: {progress.label} {progress.done}/{progress.samples} "
            f"({progress.done_in_all}/{progress.rows_in_all} in all{remaining})",
            file=stream,
            flush=True,
        )

    return show
