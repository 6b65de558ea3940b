"""Executors: the same rows whichever process judged them, and failures in any of them are raised."""

import multiprocessing
import os
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.execution.executors import LocalExecutor
from kwbench.evaluation.execution.processes import prepare
from kwbench.evaluation.execution.tasks import Task
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.record.store import Store
from support.small_registry import fast_suite, request, rows, write_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


def asked(registry: Path, **options: Any) -> Request:
    defaults: dict[str, Any] = {"n": 96, "tile": 16, "eps": "0.05", "threads": 2}
    return request(registry, **defaults | options)


def evaluated(what: Request, db: Path) -> dict[str, list[dict[str, Any]]]:
    store = Store.open(str(db), create=True)
    try:
        return rows(db, evaluate(what, store))
    finally:
        store.close()


@dataclass(frozen=True)
class WhoJudges(Task[int]):
    """Judge a row and return the id of the process; the first leaves time for the other to come."""

    row: int

    def run(self, evaluator: LocalEvaluator) -> int:
        evaluator.judge_clean([self.row])
        return os.getpid()


@dataclass(frozen=True)
class FailsElsewhere(Task[None]):
    """Judge a row, but fail in any other process than this."""

    row: int
    here: int

    def run(self, evaluator: LocalEvaluator) -> None:
        evaluator.judge_clean([self.row])
        if os.getpid() != self.here:
            raise CannotEvaluate("there")


def processes_of(executor: LocalExecutor, rows: Iterable[int] = range(96)) -> list[int]:
    return [process for _, process in executor.map([WhoJudges(row) for row in rows])]


def again_and_again(executor: LocalExecutor, tasks: list[Any]) -> None:
    while True:
        list(executor.map(tasks))


def test_two_workers_share_the_work_and_neither_waits_for_the_other(registry: Path) -> None:
    executor = LocalExecutor(asked(registry))
    try:
        assert executor.facts.workers == 2
        while len(set(processes_of(executor))) < 2:
            pass  # the other one is still being started, and the work goes on
        assert len(processes_of(executor)) == 96
        assert processes_of(executor, [0]) == [os.getpid()]
        assert processes_of(executor, []) == []
    finally:
        executor.close()
    assert not multiprocessing.active_children()


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was asked for ahead, as commands do on two cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    prepare("kwbench.evaluation.execution.evaluator")


def test_a_process_that_is_there_gets_ready_before_there_is_work(registry: Path, another_process: None) -> None:
    executor = LocalExecutor(asked(registry))
    try:
        (other,) = executor._others
        latest = time.monotonic() + 60
        while "facts" not in vars(other):
            assert time.monotonic() < latest
            time.sleep(0.01)
        assert other.facts.identity == executor.facts.identity
        assert processes_of(executor)
    finally:
        executor.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("what", [{"n": 16}, {"n": 1000}])
def test_a_process_that_is_not_needed_after_all_is_let_go_of(
    registry: Path, another_process: None, what: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) if what["n"] > 360 else nullcontext():
        executor = LocalExecutor(asked(registry, **what))
        assert not multiprocessing.active_children()
        executor.close()
    assert not multiprocessing.active_children()


def test_while_one_process_downloads_no_other_does(registry: Path, another_process: None) -> None:
    executor = LocalExecutor(asked(registry, download=True))
    try:
        assert executor._others == []
        assert processes_of(executor)
    finally:
        executor.close()


@pytest.mark.parametrize("what", [{}, {"n": 16}, {"threads": 1}])
def test_there_are_as_many_workers_as_threads_and_tiles(registry: Path, what: dict[str, Any]) -> None:
    executor = LocalExecutor(asked(registry, **what))
    assert executor.facts.workers == (1 if what else 2)
    assert executor.facts.threads == (2 if what == {"n": 16} else 1)
    executor.close()


def test_two_workers_leave_the_rows_of_one(registry: Path, tmp_path: Path) -> None:
    suite = fast_suite("pgd", "square", settings=("square.steps=20", "pgd.steps=5"))
    one, two = (
        evaluated(asked(registry, suite=replace(suite, cascade=True), threads=threads), tmp_path / f"{threads}.db")
        for threads in (1, 2)
    )
    assert one == two


def test_what_a_task_raises_in_another_process_is_raised(registry: Path) -> None:
    executor = LocalExecutor(asked(registry))
    try:
        with pytest.raises(CannotEvaluate, match="there"):
            again_and_again(executor, [FailsElsewhere(row, os.getpid()) for row in range(96)])
    finally:
        executor.close()


def test_a_model_that_is_another_at_every_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "anew.py").write_text(
        "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    executor = LocalExecutor(Request(f"{tmp_path / 'anew.py'}:net", fast_suite("noop"), n=96, tile=16, threads=2))
    try:
        with pytest.raises(CannotEvaluate, match=r"anew.py:net: two processes that loaded it do not agree on its identity"):
            again_and_again(executor, [WhoJudges(row) for row in range(96)])
    finally:
        executor.close()
