"""Where the wall time of a command goes, by phase."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# A phase, and what it is a part of: ("attacks", "pgd", "search").
Phase = tuple[str, ...]

IMPORTS, DATA, LOADING, PROBES = (("imports",), ("data",), ("loading",), ("probes",))
ATTACKS, CERTIFICATES, DIAGNOSIS = (("attacks",), ("certificates",), ("diagnosis",))
RECORD, REPORT, PROCESSES, OTHER = (("record",), ("report",), ("processes",), ("other",))

_IMPORTED = time.perf_counter()


class Timings:
    """Wall seconds by phase, from `started`, a value of `time.perf_counter`; default: now.

    Phases may be nested. Time counts for the innermost one only, so the phases sum to the time that has passed. The time
    before now counts for the imports.
    """

    def __init__(self, started: float | None = None) -> None:
        self._counted = time.perf_counter()
        self._seconds: dict[Phase, float] = {} if started is None else {IMPORTS: self._counted - started}
        self._open: list[Phase] = [OTHER]

    @contextmanager
    def phase(self, *phase: str) -> Iterator[None]:
        """Count the time of this block for a phase."""
        self._count()
        self._open.append(phase)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def seconds(self) -> dict[Phase, float]:
        """Return the seconds by phase until now, in the order in which phases began."""
        self._count()
        return dict(self._seconds)

    def divide(self, phase: Phase, parts: Mapping[Phase, float], rest: Phase) -> None:
        """Count the seconds of a phase for its parts instead, which took so many seconds here, and what remains for `rest`."""
        self._count()
        divided = self._seconds.pop(phase, 0.0)
        scale = min(1.0, divided / (sum(parts.values()) or 1.0))
        for part, seconds in {**parts, rest: parts.get(rest, 0.0)}.items():
            spent = seconds * scale
            divided -= spent
            self._seconds[part] = self._seconds.get(part, 0.0) + spent
        self._seconds[rest] += max(divided, 0.0)

    def share(self, phase: Phase, work: Mapping[Phase, float], rest: Phase) -> None:
        """Count the seconds of a phase for its parts instead, in proportion to their work in all processes.

        All of them count for `rest` if nothing was done.
        """
        self._count()
        total = sum(work.values())
        scale = self._seconds.get(phase, 0.0) / total if total else 0.0
        self.divide(phase, {part: seconds * scale for part, seconds in work.items()}, rest)

    def to_json(self) -> dict[str, Any]:
        """Return the seconds until now: their sum as `wall`, then those of each phase, nested as the phases are."""
        seconds = self.seconds()
        answer: dict[str, Any] = {"wall": round(sum(seconds.values()), 3)}
        for phase, spent in seconds.items():
            parent = answer
            for name in phase[:-1]:
                parent = parent.setdefault(name, {})
            parent[phase[-1]] = round(spent, 3)
        return answer

    def _count(self) -> None:
        now = time.perf_counter()
        current = self._open[-1]
        self._seconds[current] = self._seconds.get(current, 0.0) + now - self._counted
        self._counted = now


def process_started() -> float:
    """Return when this process started, as a value of `time.perf_counter`; where the system does not say, a little later."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        # The name of the program, in brackets, may hold anything. Field 22 of proc(5) counts clock ticks since the boot.
        ticks = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        if age >= 0:
            return time.perf_counter() - age
    return _IMPORTED
