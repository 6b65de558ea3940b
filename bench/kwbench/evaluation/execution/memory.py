"""The memory of child processes, watched: one that takes too much is ended before the system ends whatever it chooses.

Linux only, from /proc and the limits of control groups, as containers and SLURM set them. Elsewhere nothing is watched.
"""

import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path

from kwbench.evaluation.execution.guardian import descendants_of

# Seconds between looks, and looks until new processes are searched for, which takes longer.
_INTERVAL, _LOOKS = 0.1, 5
# What stays free for others, and for what is taken between two looks: a share of what is available, and at most so many bytes.
_RESERVE, _MOST_RESERVED = 1 / 8, 2 << 30
# By version of control groups: the folder, the files of the limit and of what is used, and the cache that can be given back.
_GROUPS = {
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
}


class MemoryWatch:
    """A thread that ends a process once it and those that it started hold too much memory.

    Attributes:
        exceeded: why it was ended; None if it was not.
    """

    def __init__(self, process: SpawnProcess) -> None:
        self.exceeded: str | None = None
        self._process = process
        self._ended = threading.Event()

    def start(self, wish: float | None) -> None:
        """Begin to watch, with a limit of so many bytes, or of what can be spared now if that is less."""
        spare = spare_memory()
        if spare is not None:
            limit = spare if wish is None else min(wish, spare)
            origin = "of --memory-limit" if limit == wish else "that could be spared when it started"
            threading.Thread(target=self._watch, args=(limit, origin), daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _watch(self, limit: float, origin: str) -> None:
        looks, processes = 0, list[int]()
        while not self._ended.wait(_INTERVAL):
            assert self._process.pid is not None
            if looks % _LOOKS == 0 or not processes:
                processes = descendants_of(self._process.pid)
            looks += 1
            held = memory_held(processes, limit)
            if held > limit:
                self.exceeded = f"held {held / 1e9:.2f} GB of memory, more than the {limit / 1e9:.2f} GB {origin}"
                self._process.terminate()
                return


def spare_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that new processes may take while enough is left for all others; None where that is unknown.

    `root` is where /proc and /sys are.
    """
    if sys.platform != "linux":
        return None
    try:
        available = [1024 * _sum(root / "proc/meminfo", "MemAvailable:")]
    except (OSError, ValueError):
        return None
    for folder, limit, used, cache in _groups(root):
        with suppress(OSError, ValueError):
            in_use = int((folder / used).read_text()) - _sum(folder / "memory.stat", f"{cache} ")
            available.append(max(0, int((folder / limit).read_text()) - in_use))
    least = min(available)
    return least - min(_MOST_RESERVED, int(_RESERVE * least))


def memory_held(processes: Collection[int], enough: float) -> int:
    """Return the bytes that processes hold in memory, without pages of files, which the system can drop.

    What they share counts once, unless all together are below `enough`.
    """
    held = {}
    for process in processes:
        with suppress(OSError, ValueError):
            held[process] = 1024 * _sum(Path(f"/proc/{process}/status"), "RssAnon:", "RssShmem:")
    if sum(held.values()) > enough and len(held) > 1:
        for process in held:
            with suppress(OSError, ValueError):
                held[process] = 1024 * _sum(Path(f"/proc/{process}/smaps_rollup"), "Pss_Anon:", "Pss_Shmem:")
    return sum(held.values())


def _groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Yield the folder of each control group that this process is in, with the names of what is read there."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            mount, *names = _GROUPS[1 if controllers else 2]
            group = Path(path.strip("/"))
            # In a container, the last one, which is the mount itself, may be the only one that is there.
            for part in (group, *group.parents):
                yield root / mount / part, names[0], names[1], names[2]


def _sum(file: Path, *names: str) -> int:
    """Return the sum of the numbers after these names, each at the beginning of a line. Raises OSError, and ValueError."""
    numbers = [int(line.split()[1]) for line in file.read_text(errors="replace").splitlines() if line.startswith(names)]
    if len(numbers) != len(names):
        raise ValueError(f"{file} does not have {names}")
    return sum(numbers)
