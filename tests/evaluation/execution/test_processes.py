"""Child processes started ahead: taken once, by the first user, and only if there is a second core."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwbench.cli.main import main
from kwbench.evaluation.execution import processes
from kwbench.evaluation.execution.processes import ServerProcess, dismiss, prepare, server_process
from support.small_registry import write_registry

ANSWERS = """\
import os, signal

def serve(pipe):
    # The process that was started is the guardian of this one.
    pipe.send((os.getppid(), signal.getsignal(signal.SIGINT), pipe.recv()))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "answers.py").write_text(ANSWERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(processes, "_prepared", {})
    yield "answers"
    for server in processes._prepared.values():
        server.close()


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def reply_of(server: ServerProcess) -> tuple[int, object, object]:
    server.pipe.send("asked")
    reply: tuple[int, object, object] = server.pipe.recv()
    server.close()
    return reply


def test_the_first_caller_gets_the_prepared_process_and_the_next_one_a_new_process(module: str, cores: None) -> None:
    prepare(module)
    prepare(module)  # the second call starts nothing
    ready = processes._prepared[module].process.pid
    first, second = server_process(module), server_process(module)
    assert first.process.pid == ready != second.process.pid
    for server in (first, second):
        assert reply_of(server) == (server.process.pid, signal.SIG_IGN, "asked"), "the child process ignores Ctrl-C"
        assert not server.process.is_alive()


def test_a_prepared_process_that_died_is_replaced_and_a_dismissed_one_is_stopped(module: str, cores: None) -> None:
    prepare(module)
    dead = processes._prepared[module].process
    dead.kill()
    dead.join()
    fresh = server_process(module)
    assert reply_of(fresh)[0] == fresh.process.pid != dead.pid
    prepare(module)
    idle = processes._prepared[module].process
    dismiss(module)
    dismiss(module)
    assert not idle.is_alive()
    assert not processes._prepared


def test_a_failure_to_start_a_process_ahead_is_ignored(module: str, cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> ServerProcess:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(processes, "_start", fail)
    prepare(module)
    assert not processes._prepared


def test_on_one_core_nothing_is_started_ahead(module: str, cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as single_core:
        single_core.setattr(os, "sched_getaffinity", lambda _: {3})
        prepare(module)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prepare(module)
    assert not processes._prepared


def test_a_process_is_started_ahead_only_if_the_command_certainly_has_work_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: None
) -> None:
    prepared = list[str]()
    monkeypatch.setattr(processes, "prepare", prepared.append)
    monkeypatch.chdir(tmp_path)
    write_registry(tmp_path)
    on_record = ["--threads", "2", "--db", "sqlite:///results.db"]
    for extra in (["--threads", "1"], ["--threads", "2", "--db", "other.db"], ["--threads", "2"], on_record):
        monkeypatch.setattr("sys.argv", ["kwbench", "evaluate", "small", "--attack", "fgsm", "--n", "4", *extra])
        with pytest.raises(SystemExit, match="0"):
            main()
    assert prepared == ["kwbench.evaluation.execution.evaluator"]
