"""The progress of evaluations on stderr: a bar on a terminal, plain lines elsewhere, both with the time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from kwbench.formatting import printable

if TYPE_CHECKING:
    from kwbench.evaluation.runner import Progress

# Seconds between plain lines, apart from those at the start and the end of an attack.
_INTERVAL = 15.0


@contextmanager
def progress_display(stream: TextIO | None = None) -> "Iterator[Callable[[Progress], None]]":
    """Yield a function that displays the progress it is called with, until the block ends; by default on stderr."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    if not console.is_terminal:
        yield _plain_lines(stream)
        return
    columns = (
        # Without markup, because a model's name may contain brackets.
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
            if progress.retried:
                bar.console.print(_retried(progress), markup=False)
            if progress.model not in tasks:
                tasks[progress.model] = bar.add_task(printable(progress.model), total=progress.rows_in_all)
            bar.update(
                tasks[progress.model],
                completed=progress.done_in_all,
                total=progress.rows_in_all,
                description=printable(f"{progress.model}  {progress.label}"),
            )

        yield show


def _plain_lines(stream: TextIO) -> "Callable[[Progress], None]":
    """Return a function that prints a line when an attack starts, when it ends, and every `_INTERVAL` seconds."""
    started: dict[str, float] = {}
    # Per model and attack, the rows that were on record when it started: they say nothing about the speed.
    recorded: dict[str, dict[str, int]] = {}
    reached: dict[str, int] = {}
    last_line = 0.0

    def show(progress: "Progress") -> None:
        nonlocal last_line
        now = time.monotonic()
        if progress.done_in_all < reached.get(progress.model, 0):
            # Another evaluation of the same model has begun, under another threat model for instance.
            del started[progress.model], recorded[progress.model]
        reached[progress.model] = progress.done_in_all
        start = started.setdefault(progress.model, now)
        earlier = recorded.setdefault(progress.model, {})
        earlier.setdefault(progress.label, progress.done)
        if progress.retried:
            print(_retried(progress), file=stream, flush=True)
        if 0 < progress.done < progress.samples and now - last_line < _INTERVAL:
            return
        last_line = now
        fresh = progress.done_in_all - sum(earlier.values())
        left = (now - start) / fresh * (progress.rows_in_all - progress.done_in_all) if fresh else None
        remaining = "" if left is None else f", about {left:.0f} s left"
        print(
            printable(f"{progress.model}: {progress.label} {progress.done}/{progress.samples} ")
            + f"({progress.done_in_all}/{progress.rows_in_all} in all{remaining})",
            file=stream,
            flush=True,
        )

    return show


def _retried(progress: "Progress") -> str:
    rows = "1 row of errors" if progress.retried == 1 else f"{progress.retried} rows of errors"
    tried = "is" if progress.retried == 1 else "are"
    return printable(f"{progress.model}: {progress.label}: {rows} from an earlier run {tried} tried again")
