"""Shared by the speed benchmarks: timing contestants in turn within one process, ratios with quartiles, Markdown tables."""

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
    contestants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds that each contestant takes in each round; every round starts with another contestant.

    So other load on the machine affects all of them alike. If all work is done in this process, `time.process_time` also
    excludes waiting for a busy machine. Every contestant runs once before, untimed.
    """
    for contestant in contestants.values():
        contestant()
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            contestants[name]()
            seconds[name].append(clock() - started)
    return seconds


def spread(values: Iterable[float]) -> Spread:
    """Return median and quartiles of at least one value."""
    return Spread(*np.quantile(list(values), [0.25, 0.5, 0.75]).tolist())


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the ratio of times in the same round; below 1 if ours is faster. Raises ValueError if the lengths differ."""
    return spread(mine / other for mine, other in zip(ours, theirs, strict=True))


def machine_line(threads: int) -> str:
    """Return the machine, the number of threads and the versions that times depend on, as one line."""
    details = machine() | {"threads": threads} | versions()
    return ", ".join(f"{key} {value}" for key, value in details.items())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with the first column aligned left and the others right, without a final line break."""
    marks = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in (header, marks, *rows))
