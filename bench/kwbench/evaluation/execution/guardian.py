"""A guardian process between a command and a worker. It ends with either of them, and ends everything that the worker started.

It runs no foreign code and holds no large library, so that a model that keeps Python's interpreter lock cannot stop it.
"""

import ctypes
import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

# From linux/prctl.h.
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
# Seconds between looks where the system cannot wait for a process and a pipe at once.
_INTERVAL = 0.1
# Seconds that the guardian tries to end what a worker started.
_PATIENCE = 5.0


class _Stopped(Exception):
    """The command asked the guardian to end."""


def continue_guarded(inherited: Sequence[int]) -> None:
    """Fork: return in the child, the worker; stay behind as its guardian, which never returns and closes `inherited` files.

    The guardian exits with the exit code, or the signal, of the worker. The worker gets a session, and a process group, of its
    own: signals of the terminal reach the command alone. On systems other than Linux only that process group is ended, and
    not what left it.
    """
    os.setsid()
    _control(_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    # Asked to end while the worker starts, the guardian must end the worker too.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, _stop)
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        _control(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != guardian:
            os._exit(1)
        return
    for file in inherited:
        os.close(file)
    _guard(worker)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Stopped


def _guard(worker: int) -> NoReturn:
    status = None
    try:
        status = _wait(worker)
    except _Stopped:
        pass
    finally:
        with suppress(_Stopped):
            _end_descendants(worker)
    _exit_as(status)


def _wait(worker: int) -> int | None:
    """Return the status of the worker once it ended; None if the command ended before."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    files = [parent.sentinel]
    if sys.platform == "linux":
        with suppress(OSError):
            files.append(os.pidfd_open(worker))
    while True:
        ready, _, _ = select.select(files, [], [], None if len(files) > 1 else _INTERVAL)
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            return status
        if parent.sentinel in ready:
            return None


def _end_descendants(worker: int) -> None:
    """Kill the worker, its process group and, on Linux, all that they started, which became children of the guardian."""
    latest = time.monotonic() + _PATIENCE
    while time.monotonic() < latest:
        with suppress(OSError):
            os.killpg(worker, signal.SIGKILL)
        for process in (descendants := descendants_of(os.getpid())):
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not descendants:
            return
        time.sleep(0.005)


def descendants_of(ancestor: int) -> list[int]:
    """Return the ids of the processes below a process, from /proc; empty where there is none."""
    parents: dict[int, int] = {}
    with suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                # The name of the program, in brackets, may hold anything.
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    below, added = {ancestor}, {ancestor}
    while added:
        added = {process for process, parent in parents.items() if parent in below} - below
        below |= added
    return sorted(below - {ancestor})


def _exit_as(status: int | None) -> NoReturn:
    """Exit as the worker did; 1 if it had not ended."""
    if status is None:
        os._exit(1)
    if os.WIFSIGNALED(status):
        with suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ended_by = os.WTERMSIG(status)
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _control(option: int, value: int) -> None:
    """Set an attribute of this process, where the system is Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
