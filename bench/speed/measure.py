"""Helpers of the speed benchmarks: timing of functions that take turns, ratios with quartiles, and Markdown tables."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from kwbench.model import require_exact_float32
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
    """Return the seconds of each side, one value per round; each round begins with another side.

    Other load on the machine thus affects all sides alike. Sides that work in this process alone may be timed by
    `time.process_time`, which excludes waiting for a busy machine. Every side runs once before, untimed.
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
    """Return median and quartiles of at least one value."""
    return Spread(*np.quantile(list(values), [0.25, 0.5, 0.75]).tolist())


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the spread of the ratios of values of the same round. Raises ValueError if the lengths differ."""
    return spread(numerator / denominator for numerator, denominator in zip(numerators, denominators, strict=True))


def waiting(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Return `run` as a function that returns when a GPU has finished it."""

    def finish() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return finish


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute with the defaults of torch, TF32 in convolutions among them, and exactly in float32 again afterwards."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.deterministic = False
    try:
        yield
    finally:
        require_exact_float32()


def peak_memory(run: Callable[[], object], device: torch.device) -> str:
    """Return the MiB that `run` allocates on a GPU at most, beyond what is held before; a dash on a CPU."""
    if device.type != "cuda":
        return "-"
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return f"{(torch.cuda.max_memory_allocated(device) - held) / 2**20:,.0f}"


def machine_line(threads: int, device: torch.device | None = None) -> str:
    """Return a line with the computer, its GPU if that is used, the threads and the versions on which times depend."""
    gpu = {"GPU": torch.cuda.get_device_name(device)} if device is not None and device.type == "cuda" else {}
    about = machine() | gpu | {"threads": threads} | versions()
    return ", ".join(f"{key} {value}" for key, value in about.items())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, the first column aligned left, the others right, without a final line break."""
    marks = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in (header, marks, *rows))
