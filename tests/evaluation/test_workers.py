"""Evaluators side by side: the same rows, whoever judged them, and failures that are heard of."""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.evaluator import Evaluator, Request, SpawnedEvaluator
from kwbench.evaluation.processes import prepare
from kwbench.evaluation.runner import evaluate
from kwbench.evaluation.workers import Workers
from kwbench.record.store import Store
from support.small_registry import fast_suite, request, rows, write_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


def asked(registry: Path, **options: Any) -> Request:
    return request(registry, **{"n": 96, "tile": 16, "eps": "0.05", "threads": 2} | options)


def evaluated(what: Request, db: Path) -> dict[str, list[dict[str, Any]]]:
    store = Store.open(str(db), create=True)
    try:
        return rows(db, evaluate(what, store))
    finally:
        store.close()


def working(evaluator: Evaluator, row: int) -> str:
    """Who judged a row; the first leaves time for the other to come."""
    evaluator.judge_clean([row])
    return type(evaluator).__name__


def again_and_again(workers: Workers, work: Callable[[Evaluator, int], Any]) -> None:
    while True:
        list(workers.each(work, range(96)))


def test_two_workers_share_the_work_and_neither_waits_for_the_other(registry: Path) -> None:
    workers = Workers(asked(registry))
    try:
        assert workers.facts.workers == 2
        while len(set(workers.each(working, range(96)))) < 2:
            pass  # the other one is still being started, and the work goes on
        assert len(list(workers.each(working, range(96)))) == 96
        assert list(workers.each(working, [0])) == ["LocalEvaluator"]
        assert list(workers.each(working, [])) == []
    finally:
        workers.close()
    assert not multiprocessing.active_children()


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was asked for ahead, as commands do on two cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    prepare("kwbench.evaluation.evaluator")


def test_a_process_that_is_there_gets_ready_before_there_is_work(registry: Path, another_process: None) -> None:
    workers = Workers(asked(registry))
    try:
        (other,) = workers._others
        latest = time.monotonic() + 60
        while "facts" not in vars(other):
            assert time.monotonic() < latest
            time.sleep(0.01)
        assert other.facts.identity == workers.facts.identity
        assert list(workers.each(working, range(96)))
    finally:
        workers.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("what", [{"n": 16}, {"n": 1000}])
def test_a_process_that_is_not_needed_after_all_is_let_go_of(
    registry: Path, another_process: None, what: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) if what["n"] > 360 else nullcontext():
        workers = Workers(asked(registry, **what))
        assert not multiprocessing.active_children()
        workers.close()
    assert not multiprocessing.active_children()


def test_while_one_process_downloads_no_other_does(registry: Path, another_process: None) -> None:
    workers = Workers(asked(registry, download=True))
    try:
        assert workers._others == []
        assert list(workers.each(working, range(96)))
    finally:
        workers.close()


@pytest.mark.parametrize("what", [{}, {"n": 16}, {"threads": 1}])
def test_there_are_as_many_workers_as_threads_and_tiles(registry: Path, what: dict[str, Any]) -> None:
    workers = Workers(asked(registry, **what))
    assert workers.facts.workers == (1 if what else 2)
    assert workers.facts.threads == (2 if what == {"n": 16} else 1)
    workers.close()


def test_two_workers_leave_the_rows_of_one(registry: Path, tmp_path: Path) -> None:
    suite = fast_suite("pgd", "square", settings=("square.steps=20", "pgd.steps=5"))
    one, two = (
        evaluated(asked(registry, suite=replace(suite, cascade=True), threads=threads), tmp_path / f"{threads}.db")
        for threads in (1, 2)
    )
    assert one == two


def test_what_another_worker_raises_is_raised(registry: Path) -> None:
    def fails(evaluator: Evaluator, row: int) -> None:
        evaluator.judge_clean([row])
        if isinstance(evaluator, SpawnedEvaluator):
            raise CannotEvaluate("there")

    workers = Workers(asked(registry))
    try:
        with pytest.raises(CannotEvaluate, match="there"):
            again_and_again(workers, fails)
    finally:
        workers.close()


def test_a_model_that_is_another_at_every_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "anew.py").write_text(
        "import torch\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    workers = Workers(Request(f"{tmp_path / 'anew.py'}:net", fast_suite("noop"), n=96, tile=16, threads=2))
    try:
        with pytest.raises(CannotEvaluate, match=r"anew.py:net: two processes that loaded it do not agree on its identity"):
            again_and_again(workers, working)
    finally:
        workers.close()
