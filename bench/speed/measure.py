"""What the speed benchmarks share: sides that take turns in one process, ratios with their spread, and how they are printed."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kwbench.record.provenance import machine, versions


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def alternate(
    sides: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds that each side takes, round by round; the one that begins is another each round.

    Whatever else the machine does then falls on all sides alike; what works in this process alone may be timed by
    `time.process_time`, which leaves out waiting for a busy machine. Every side runs once before, untimed.
    """
    for side in sides.values():
        side()
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = clock()
            sides[name]()
            seconds[name].append(clock() - began)
    return seconds


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    return Spread(*np.quantile(list(values), [0.25, 0.5, 0.75]).tolist())


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours to theirs, of the same round each; below 1 where ours is faster. Raises ValueError if their lengths differ."""
    return spread(mine / other for mine, other in zip(ours, theirs, strict=True))


def machine_line(threads: int) -> str:
    """The computer, the threads and the versions that times depend on, for a page."""
    about = machine() | {"threads": threads} | versions()
    return ", ".join(f"{key} {value}" for key, value in about.items())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The first column to the left, the others to the right. Ends without a line break."""
    marks = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in (header, marks, *rows))
