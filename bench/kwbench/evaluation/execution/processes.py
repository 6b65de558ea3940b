"""Child processes that run a module's `serve`; one can be started ahead, to import while this process does the same."""

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
from multiprocessing import resource_tracker, spawn
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from kwbench.evaluation.execution.channel import Channel
from kwbench.evaluation.execution.guardian import continue_guarded
from kwbench.evaluation.execution.memory import MemoryWatch
from kwbench.evaluation.execution.relay import Relay
from kwbench.imports import importing

# Seconds that a process has to end, and its output to be read.
_PATIENCE = 10.0
# Seconds without a byte after which a message of a process that runs foreign code, or one to it, is given up.
STALLED = 30.0


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A child process that runs a module's `serve(pipe)`, and this process's end of the pipe.

    The process is the guardian of the one that serves; see `guardian`. `output` passes on what they print to stderr. `memory`
    watches what they hold, once it is started.
    """

    process: SpawnProcess
    pipe: Channel
    output: Relay
    memory: MemoryWatch

    def close(self) -> None:
        """Close the pipe, and end the process and everything that it started."""
        self.memory.stop()
        self.pipe.close()
        self.process.terminate()
        self.process.join(_PATIENCE)
        self.process.kill()
        self.process.join()
        self.output.finish(_PATIENCE)


# Processes started ahead, by module.
_prepared: dict[str, ServerProcess] = {}


def prepare(module: str) -> None:
    """Start a process for this module ahead of its first use. Does nothing on a single core, where it would only delay."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores > 1 and os.environ.get("OMP_NUM_THREADS") != "1" and module not in _prepared:
        with suppress(OSError):  # `server_process` reports it if the process is needed
            _prepared[module] = _start(module)


def is_ready(module: str) -> bool:
    """Return whether a process was started ahead and has not been taken yet."""
    return module in _prepared


def dismiss(module: str) -> None:
    """Stop the process that was started ahead for this module, if there is one."""
    if (prepared := _prepared.pop(module, None)) is not None:
        prepared.close()


def server_process(module: str, launcher: Path | None = None) -> ServerProcess:
    """Return a process that serves this module: the one started ahead if it is still alive, or a new one.

    `launcher` is a program that runs Python in its place, see `sandbox`.
    """
    if launcher is not None:
        return _start(module, launcher)
    prepared = _prepared.pop(module, None)
    if prepared is not None and not prepared.process.is_alive():
        prepared.close()
        prepared = None
    return prepared or _start(module)


def _start(module: str, launcher: Path | None = None) -> ServerProcess:
    context = multiprocessing.get_context("spawn")
    pipe, child_pipe = Channel.pair()
    printed, output = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(module, child_pipe, output), daemon=True)
    with _interrupts_ignored(), _main_module_hidden(), _strings_hashed_alike(), _launched_by(launcher):
        process.start()
    child_pipe.close()
    output.close()
    return ServerProcess(process, pipe, Relay(printed), MemoryWatch(process))


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that start in this block ignore Ctrl-C, which a terminal sends to all; the parent stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep processes that start in this block from importing the main script, which may lack a __main__ guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _strings_hashed_alike() -> Iterator[None]:
    """Let processes that start in this block iterate over sets of strings in the same order, so that models are the same."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before


@contextmanager
def _launched_by(launcher: Path | None) -> Iterator[None]:
    """Have this program run in place of Python's for processes that start in this block."""
    before = spawn.get_executable()
    spawn.set_executable(before if launcher is None else str(launcher))
    try:
        yield
    finally:
        spawn.set_executable(before)


def _serve(module: str, pipe: Channel, output: multiprocessing.connection.Connection) -> None:
    continue_guarded([pipe.fileno(), output.fileno()])
    # Output of the model's code must not mix with the results on stdout, nor reach a terminal as it is.
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    _forget_resource_tracker()
    # Where memory runs out all the same, Linux is to end this process and not the command.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    sys.argv = sys.argv[:1]  # the command's arguments are not those of a model's code
    # A daemon may have no children, which a user's data loader needs. The guardian ends them all the same.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    with importing():
        server = import_module(module)
    server.serve(pipe)


def _forget_resource_tracker() -> None:
    """Let this process start a resource tracker of its own when it needs one; that of the command serves the command."""
    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is not None:
        os.close(tracker._fd)
        tracker._fd = tracker._pid = None
