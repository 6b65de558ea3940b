"""What is read of the memory of processes, of the machine, and of its control groups."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kwbench.evaluation.execution.memory import memory_held, spare_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

GB = 1 << 30


def machine(root: Path, available: int, groups: str, files: dict[str, str]) -> Path:
    """The files of a machine with so much memory available, and of its control groups."""
    contents = {
        "proc/meminfo": f"MemTotal: {2 * available // 1024} kB\nMemAvailable: {available // 1024} kB\n",
        "proc/self/cgroup": groups,
        **files,
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def group(folder: str, version: int, limit: str, used: int, cache: int) -> dict[str, str]:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    statistics = f"anon 1\n{'inactive_file' if version == 2 else 'total_inactive_file'} {cache}\n"
    return {f"{folder}/{names[0]}": limit, f"{folder}/{names[1]}": str(used), f"{folder}/memory.stat": statistics}


def test_an_eighth_of_what_is_available_and_at_most_two_gigabytes_are_spared_for_others(tmp_path: Path) -> None:
    assert spare_memory(machine(tmp_path / "small", 8 * GB, "", {})) == 7 * GB
    assert spare_memory(machine(tmp_path / "large", 64 * GB, "", {})) == 62 * GB


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/job/step\n", group("sys/fs/cgroup/job", 2, f"{6 * GB}\n", 3 * GB, GB)),
        ("0::/not/seen/here\n", group("sys/fs/cgroup", 2, f"{6 * GB}\n", 3 * GB, GB)),
        ("4:cpu,memory:/job\n0::/\n", group("sys/fs/cgroup/memory/job", 1, f"{6 * GB}\n", 3 * GB, GB)),
    ],
    ids=["of a parent", "of a container", "first version"],
)
def test_the_limit_of_a_control_group_counts_less_what_is_in_use(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert spare_memory(machine(tmp_path, 64 * GB, groups, files)) == 4 * GB - GB // 2


def test_a_group_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup/job", 2, "max\n", 3 * GB, GB)
    assert spare_memory(machine(tmp_path, 8 * GB, "0::/job\n", files)) == 7 * GB


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert spare_memory(tmp_path) is None


def test_what_processes_share_counts_once_where_it_matters() -> None:
    code = "import os, signal; kept = b'x' * (64 << 20); child = os.fork(); child and print(child, flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            alone, apart, together = (
                memory_held(processes, enough)
                for processes, enough in (([parent.pid], 0.0), ([parent.pid, child], 1e12), ([parent.pid, child], 0.0))
            )
        finally:
            os.kill(child, signal.SIGKILL)
            parent.kill()
    assert 64 << 20 < alone < apart - (64 << 20)
    assert together < apart - (48 << 20)


def test_pages_of_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * (64 << 20))
    code = (
        "import mmap, os, sys; file = open(sys.argv[1], 'rb'); pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print(sum(pages[::4096]), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert int(process.stdout.readline()) == ord("x") << 14
        assert memory_held([process.pid], 0.0) < 32 << 20
        process.stdin.close()
