"""Several programs evaluate one model into one PostgreSQL record: they share the work, and leave the rows of one."""

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.outcome import Outcome
from kwbench.record.store import Store
from support.postgres import Server
from support.small_registry import fast_suite, request, write_registry

_ROWS = 96


def drive(what: Request, url: str, barrier: Any, judged: Any) -> None:
    """Evaluate, and count the rows that this process judged. Each batch takes a while, so that both find work."""
    judge = LocalEvaluator.judge

    def counting(self: LocalEvaluator, label: str, rows: Any, clean: Any, to_beat: Any) -> list[Outcome]:
        judged.value += len(rows)
        time.sleep(0.1)
        return judge(self, label, rows, clean, to_beat)

    LocalEvaluator.judge = counting  # type: ignore[method-assign]
    store = Store.open(url, create=True)
    barrier.wait()
    evaluate(what, store)
    store.close()


def rows_of(url: str) -> dict[str, list[Outcome]]:
    store = Store.open(url)
    try:
        (evaluation,) = store.evaluations()
        return {label: _timeless(store.outcomes(run)) for label, run in evaluation.attack_runs.items()}
    finally:
        store.close()


def _timeless(outcomes: list[Outcome]) -> list[Outcome]:
    return [replace(outcome, seconds=0.0) for outcome in outcomes]


@pytest.mark.parametrize("killed", [False, True])
def test_two_drivers_share_an_evaluation_and_one_finishes_what_the_other_leaves(
    postgres: Server, tmp_path: Path, killed: bool
) -> None:
    suite = fast_suite("fgsm", "pgd", settings=("pgd.steps=3",))
    what = request(write_registry(tmp_path), "small", suite=suite, n=_ROWS, tile=8, eps="0.05", threads=1)
    plain = Store.open(str(tmp_path / "plain.db"), create=True)
    evaluate(what, plain)
    plain.close()
    expected = rows_of(str(tmp_path / "plain.db"))

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kwbench.evaluation.runner", "pyautoattack", "foolbox", "sklearn.datasets"])
    url, barrier = postgres.database(f"shared{int(killed)}"), context.Barrier(2)
    counts = [context.Value("i", 0) for _ in range(2)]
    drivers = [context.Process(target=drive, args=(what, url, barrier, count)) for count in counts]
    for driver in drivers:
        driver.start()
    if killed:
        deadline = time.monotonic() + 100
        while counts[0].value < 16:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        drivers[0].kill()
    for driver in drivers:
        driver.join(100)
    assert [driver.exitcode for driver in drivers] == [-9 if killed else 0, 0]
    assert rows_of(url) == expected
    first, second = (count.value for count in counts)
    # Misclassified samples are judged too, without an attack.
    assert min(first, second) > 0
    assert first + second <= 2 * _ROWS + (8 if killed else 0)
