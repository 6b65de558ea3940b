"""A Ray cluster of several nodes on this machine, each with its own processes; none is a mock."""

import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kwbench.evaluation.execution.guardian import descendants_of

# Bytes of an object store; Ray wants 75 MiB at least.
_STORE = 80 << 20
_ATTEMPTS = 3
# The death of a node is noticed within seconds, and its processes are no less urgent than those of the tests.
_SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1500,
    "health_check_failure_threshold": 3,
    "worker_niceness": 0,
}


class Nodes:
    """A head node and two others, with one CPU each, until `close`."""

    def __init__(self) -> None:
        pytest.importorskip("ray", reason="the Python package ray is not installed")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        # The names of sockets, which lie below, may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="kwr-", dir="/tmp"))
        # Ray notes the address of the newest cluster below this folder, which must exist; by default it is that of all users.
        (self.folder / "ray").mkdir()
        self._ray_folder = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = str(self.folder)
        self.started: set[int] = set()
        self._cluster: Any = Cluster()
        self._start(
            num_cpus=1,
            object_store_memory=_STORE,
            include_dashboard=False,
            temp_dir=str(self.folder),
            _system_config=_SYSTEM,
        )
        for _ in range(2):
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def others(self) -> list[Any]:
        """The nodes that can be killed, the oldest first."""
        return sorted(self._cluster.worker_nodes, key=_raylet)

    def add(self) -> None:
        """Start another node."""
        self._start(num_cpus=1, object_store_memory=_STORE)
        self._note()

    def _start(self, **options: Any) -> None:
        """Start a node. On a busy machine the half minute that Ray waits for it may be too short."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._cluster.add_node(**options)
            except Exception as failure:
                if not left or "timed out" not in str(failure):
                    raise
            else:
                return

    def kill(self, node: Any) -> None:
        """Kill all processes of a node at once, as when its machine loses power."""
        self._note()
        raylet = _raylet(node)
        processes = [raylet, *descendants_of(raylet)]
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        """End all nodes, and remove their files. Fails if a process is left."""
        import ray

        ray.shutdown()
        os.environ.pop("RAY_TMPDIR")
        if self._ray_folder is not None:
            os.environ["RAY_TMPDIR"] = self._ray_folder
        self._note()
        self._cluster.shutdown()
        latest = time.monotonic() + 90
        while (left := [process for process in self.started if _is_rays(process)]) and time.monotonic() < latest:
            time.sleep(0.05)
        for process in left:
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left

    def _note(self) -> None:
        """Remember what the nodes have started; other tests' processes hold Ray's paths in their command lines, too."""
        nodes = [
            info.process.pid
            for node in self._cluster.list_all_nodes()
            for infos in node.all_processes.values()
            for info in infos
        ]
        self.started.update(nodes, *(descendants_of(process) for process in nodes))


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _is_rays(process: int) -> bool:
    """Whether it runs still, and its number has not gone to another program."""
    with suppress(OSError):
        return b"ray" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False
