"""Fresh processes that serve a module; one may be asked for ahead, to import while this process does the same."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.context import SpawnProcess
from types import ModuleType

from kwbench.imports import importing


@dataclass(frozen=True, slots=True)
class Serving:
    """A process in which `serve(pipe)` of a module runs, and our end of its pipe."""

    process: SpawnProcess
    pipe: multiprocessing.connection.Connection

    def close(self) -> None:
        """Stop it."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


_ahead: dict[str, Serving] = {}


def prepare(module: str) -> None:
    """Have a process ready for the first that asks for one serving this module; of no use on a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores > 1 and os.environ.get("OMP_NUM_THREADS") != "1" and module not in _ahead:
        with suppress(OSError):  # whoever needs one will say so
            _ahead[module] = _started(module)


def is_ready(module: str) -> bool:
    """Whether a process was asked for ahead and is still to be had."""
    return module in _ahead


def dismiss(module: str) -> None:
    """Nobody will ask for one that serves this module."""
    if (ready := _ahead.pop(module, None)) is not None:
        ready.close()


def serving(module: str) -> Serving:
    """A process that serves this module."""
    ready = _ahead.pop(module, None)
    if ready is not None and not ready.process.is_alive():
        ready.close()
        ready = None
    return ready or _started(module)


def _started(module: str) -> Serving:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(module, theirs), daemon=True)
    with _interrupts_ignored(), _main_module_hidden():
        process.start()
    theirs.close()
    return Serving(process, ours)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; one that starts in this block leaves it to us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Processes that start in this block do not import the main script again, which may lack a __main__ guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(module: str, pipe: multiprocessing.connection.Connection) -> None:
    os.dup2(2, 1)  # what foreign code prints must not mix with the results on stdout
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with importing():
        served = import_module(module)
    served.serve(pipe)


def _end_with_parent() -> None:
    """A hanging model must not outlive a command that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
