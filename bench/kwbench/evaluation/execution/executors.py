"""Executors: they distribute the tasks of one evaluation over evaluators.

On two cores, two processes of one thread do up to twice the work of one process of two: small layers gain nothing from threads.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

from kwbench.errors import CannotEvaluate
from kwbench.evaluation.execution import evaluator as evaluator_module
from kwbench.evaluation.execution.evaluator import Evaluator, SpawnedEvaluator, open_evaluator
from kwbench.evaluation.execution.processes import dismiss, is_ready
from kwbench.evaluation.execution.tasks import Task
from kwbench.evaluation.request import Facts, Request
from kwbench.model import find_device

_Result = TypeVar("_Result")


class Executor(Protocol):
    """Executes independent tasks of one evaluation, wherever it likes."""

    @property
    def facts(self) -> Facts:
        """What is known about the evaluation."""
        ...

    @property
    def busy(self) -> float:
        """Seconds that all tasks took whose results were yielded, summed over processes."""
        ...

    def map(self, tasks: Sequence[Task[_Result]]) -> Iterator[tuple[Task[_Result], _Result]]:
        """Yield each task with its result, in order of completion. Raises whatever a task raises."""
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...


class LocalExecutor:
    """Evaluators on this machine: one in this thread, others in spawned processes, started once there is work for them."""

    def __init__(self, request: Request, time_limit: float | None = None) -> None:
        """Load the evaluation. Raises as `open_evaluator` does."""
        self._request, self._time_limit = request, time_limit
        self._others: list[SpawnedEvaluator] = []
        self._tasks: queue.SimpleQueue[Task[Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._busy = 0.0
        # A process that was started ahead loads the model at the same time as this one; but only one process downloads.
        early = None
        ahead = is_ready(evaluator_module.__name__) and request.in_registry and not request.download
        if ahead and find_device(request.device).type == "cpu":
            early = SpawnedEvaluator(request, time_limit)
        try:
            self._first: Evaluator = open_evaluator(request, time_limit)
        except BaseException:
            if early is not None:
                early.close()
            raise
        if self.facts.workers == 1:
            dismiss(evaluator_module.__name__)
            if early is not None:
                early.close()
        elif early is not None:
            self._add(early)

    @property
    def facts(self) -> Facts:
        """See Executor."""
        return self._first.facts

    @property
    def busy(self) -> float:
        """See Executor."""
        return self._busy

    def map(self, tasks: Sequence[Task[_Result]]) -> Iterator[tuple[Task[_Result], _Result]]:
        """See Executor."""
        for task in tasks:
            self._tasks.put(task)
        self._start(min(len(tasks), self.facts.workers) - 1)
        remaining = len(tasks)
        while remaining:
            try:
                task_here = self._tasks.get_nowait()
            except queue.Empty:
                pass
            else:
                assert task_here is not None
                result_here, seconds = _timed(self._first, task_here)
                self._busy += seconds
                yield task_here, result_here
                remaining -= 1
            while remaining and not (self._results.empty() and not self._tasks.empty()):
                result = self._results.get()
                if isinstance(result, BaseException):
                    raise result
                task, (answer, seconds) = result
                self._busy += seconds
                yield task, answer
                remaining -= 1

    def close(self) -> None:
        """See Executor."""
        for evaluator in self._others:
            self._tasks.put(None)
            evaluator.close()
        self._first.close()

    def _start(self, others: int) -> None:
        while len(self._others) < others:
            self._add(SpawnedEvaluator(self._request, self._time_limit, threads=self.facts.threads))

    def _add(self, evaluator: SpawnedEvaluator) -> None:
        self._others.append(evaluator)
        threading.Thread(target=self._serve, args=(evaluator,), daemon=True).start()

    def _serve(self, evaluator: SpawnedEvaluator) -> None:
        """Give tasks to a spawned evaluator, in a thread, until there are no more."""
        try:
            evaluator.wait()
            require_equal(self.facts, evaluator.facts)
        except BaseException as failure:  # noqa: BLE001 - raised again where the results are awaited
            self._results.put(failure)
            return
        while (task := self._tasks.get()) is not None:
            try:
                self._results.put((task, _timed(evaluator, task)))
            except BaseException as failure:  # noqa: BLE001 - as above
                self._results.put(failure)
                return


def _timed(evaluator: Evaluator, task: Task[_Result]) -> tuple[_Result, float]:
    """Return the result of a task and the seconds that it took."""
    started = time.perf_counter()
    return evaluator.execute(task), time.perf_counter() - started


def require_equal(first: Facts, other: Facts, remedy: str = "--threads 1 evaluates it in one process") -> None:
    """A model that gets other weights or other randomness at each start has no single robustness."""
    for field in fields(Facts):
        if field.name not in ("workers", "answers", "seconds") and getattr(first, field.name) != getattr(other, field.name):
            raise CannotEvaluate(
                f"{first.model}: two processes that loaded it do not agree on its {field.name}; it must be the same at "
                f"every start ({remedy})"
            )
