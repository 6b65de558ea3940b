"""Evaluators of one request side by side, a core each: batches of samples do not depend on one another.

On two cores, two processes of one thread do up to twice the work of one process of two: small layers gain nothing from threads.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from kwbench.errors import CannotEvaluate
from kwbench.evaluation import evaluator
from kwbench.evaluation.evaluator import Evaluator, Facts, Request, SpawnedEvaluator, open_evaluator
from kwbench.evaluation.processes import dismiss, is_ready
from kwbench.model import find_device
from kwbench.networks.loading import is_file_model

_J = TypeVar("_J")
_R = TypeVar("_R")


class Workers:
    """The first evaluator works in this thread; others are started when there is work for them, and join once ready."""

    def __init__(self, request: Request, time_limit: float | None = None) -> None:
        """Raises as `open_evaluator` does."""
        self._request, self._time_limit = request, time_limit
        self._others: list[SpawnedEvaluator] = []
        self._jobs: queue.SimpleQueue[tuple[Callable[[Evaluator, Any], Any], Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # A process that is there already need not wait until there is work to get ready for it; but what is downloaded is
        # written by one.
        early = None
        ahead = is_ready(evaluator.__name__) and not is_file_model(request.model) and not request.download
        if ahead and find_device(request.device).type == "cpu":
            early = SpawnedEvaluator(request, time_limit)
        try:
            self._first = open_evaluator(request, time_limit)
        except BaseException:
            if early is not None:
                early.close()
            raise
        if self.facts.workers == 1:
            dismiss(evaluator.__name__)
            if early is not None:
                early.close()
        elif early is not None:
            self._take_on(early)

    @property
    def facts(self) -> Facts:
        """What all of them know."""
        return self._first.facts

    def each(self, work: Callable[[Evaluator, _J], _R], jobs: Sequence[_J]) -> Iterator[_R]:
        """What `work` returns for each of the jobs, in the order in which they are done; whatever it raises is raised here."""
        for job in jobs:
            self._jobs.put((work, job))
        self._hire(min(len(jobs), self.facts.workers) - 1)
        left = len(jobs)
        while left:
            try:
                mine = self._jobs.get_nowait()
            except queue.Empty:
                pass
            else:
                assert mine is not None
                yield mine[0](self._first, mine[1])
                left -= 1
            while left and not (self._results.empty() and not self._jobs.empty()):
                result = self._results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
                left -= 1

    def close(self) -> None:
        """Let go of everything."""
        for each in self._others:
            self._jobs.put(None)
            each.close()
        self._first.close()

    def _hire(self, others: int) -> None:
        while len(self._others) < others:
            self._take_on(SpawnedEvaluator(self._request, self._time_limit, threads=self.facts.threads))

    def _take_on(self, another: SpawnedEvaluator) -> None:
        self._others.append(another)
        threading.Thread(target=self._employ, args=(another,), daemon=True).start()

    def _employ(self, another: SpawnedEvaluator) -> None:
        try:
            another.wait()
            _require_equal(self.facts, another.facts)
        except BaseException as failure:  # noqa: BLE001 - it is raised where the results are awaited
            self._results.put(failure)
            return
        while (job := self._jobs.get()) is not None:
            try:
                self._results.put(job[0](another, job[1]))
            except BaseException as failure:  # noqa: BLE001 - as above
                self._results.put(failure)
                return


def _require_equal(first: Facts, other: Facts) -> None:
    """A model that is made anew at every start, with other weights or other randomness, has no single robustness."""
    for each in fields(Facts):
        if each.name != "workers" and getattr(first, each.name) != getattr(other, each.name):
            raise CannotEvaluate(
                f"{first.model}: two processes that loaded it do not agree on its {each.name}; it must be the same at "
                "every start (--threads 1 evaluates it in one process)"
            )
