"""Processes ready ahead: used once, by the first that asks, and only where there is a core for them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwbench.cli.main import main
from kwbench.evaluation.execution import processes
from kwbench.evaluation.execution.processes import Serving, dismiss, prepare, serving
from support.small_registry import write_registry

ANSWERS = """\
import os, signal

def serve(pipe):
    pipe.send((os.getpid(), signal.getsignal(signal.SIGINT), pipe.recv()))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "answers.py").write_text(ANSWERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(processes, "_ahead", {})
    yield "answers"
    for each in processes._ahead.values():
        each.close()


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def answer(each: Serving) -> tuple[int, object, object]:
    each.pipe.send("asked")
    found: tuple[int, object, object] = each.pipe.recv()
    each.close()
    return found


def test_the_first_that_asks_gets_the_process_that_is_ready_the_next_one_of_its_own(module: str, cores: None) -> None:
    prepare(module)
    prepare(module)  # one is enough
    ready = processes._ahead[module].process.pid
    first, second = serving(module), serving(module)
    assert first.process.pid == ready != second.process.pid
    for each in (first, second):
        assert answer(each) == (each.process.pid, signal.SIG_IGN, "asked"), "Ctrl-C is for the one that started it"
        assert not each.process.is_alive()


def test_one_that_died_meanwhile_or_that_nobody_will_ask_for_is_gone(module: str, cores: None) -> None:
    prepare(module)
    dead = processes._ahead[module].process
    dead.kill()
    dead.join()
    fresh = serving(module)
    assert answer(fresh)[0] == fresh.process.pid != dead.pid
    prepare(module)
    idle = processes._ahead[module].process
    dismiss(module)
    dismiss(module)
    assert not idle.is_alive()
    assert not processes._ahead


def test_where_no_process_can_be_started_ahead_the_command_goes_on(
    module: str, cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: str) -> Serving:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(processes, "_started", refused)
    prepare(module)
    assert not processes._ahead


def test_on_one_core_nothing_is_started_ahead(module: str, cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as one:
        one.setattr(os, "sched_getaffinity", lambda _: {3})
        prepare(module)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prepare(module)
    assert not processes._ahead


def test_a_command_that_has_all_before_it_prepares_and_one_that_may_have_all_on_record_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: None
) -> None:
    asked = list[str]()
    monkeypatch.setattr(processes, "prepare", asked.append)
    monkeypatch.chdir(tmp_path)
    write_registry(tmp_path)
    on_record = ["--threads", "2", "--db", "sqlite:///results.db"]
    for extra in (["--threads", "1"], ["--threads", "2", "--db", "other.db"], ["--threads", "2"], on_record):
        monkeypatch.setattr("sys.argv", ["kwbench", "evaluate", "resnet18-relu", "--attack", "fgsm", "--n", "4", *extra])
        with pytest.raises(SystemExit, match="0"):
            main()
    assert asked == ["kwbench.evaluation.execution.evaluator"]
