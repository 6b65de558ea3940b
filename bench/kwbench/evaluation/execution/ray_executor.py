"""Distribution of the tasks of an evaluation over the nodes of a Ray cluster.

A task whose evaluator is lost with its node is given to another one; what the model's own code raises is raised here. Tasks
are idempotent, so that it does not matter whether a lost one had been finished.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import ray
import ray.exceptions

from kwbench.errors import CannotEvaluate
from kwbench.evaluation.execution.cluster import LOST, Cluster, RemoteEvaluator
from kwbench.evaluation.execution.executors import require_equal
from kwbench.evaluation.execution.parcel import pack
from kwbench.evaluation.execution.tasks import Task
from kwbench.evaluation.request import Facts, Request

_Result = TypeVar("_Result")

# Tasks that an evaluator has at once while there are many, so that it need not wait for the next one.
_AHEAD = 2
# Times that processes may die in the same task, or while loading, on nodes that live on.
_DEATHS = 3
# Seconds between looks at the nodes, between lines about them, and without any room for an evaluator.
_LOOK, _INTERVAL, _LONGEST_WAIT = 1.0, 30.0, 900.0


class RayExecutor:
    """Evaluators on the nodes of a cluster, as many as there is room and work for. Images and files are placed once a node."""

    def __init__(self, cluster: Cluster, request: Request, time_limit: float | None = None) -> None:
        """Load the evaluation. Raises as `open_evaluator` and `pack` do."""
        self._cluster, self._time_limit = cluster, time_limit
        self._busy = 0.0
        self._loading_deaths = 0
        self._deaths: Counter[int] = Counter()
        self._told = time.monotonic()
        self._facts: Facts | None = None
        parcel = pack(cluster.settled(request))
        images = parcel.request.images
        assert images is not None
        split = images.test if request.split == "test" else images.validation
        n = request.n if request.n is not None else request.suite.n
        self._tiles = max(1, -(-min(n or len(split), len(split)) // max(request.tile_size, 1)))
        self._parcel = ray.put(parcel)
        # On GPUs, the first evaluator chooses tiles by trial for all.
        together = parcel.request.device == "cpu"
        for evaluator in cluster.evaluators if together else cluster.evaluators[:1]:
            cluster.open(evaluator, self._parcel, time_limit)
        while self._facts is None:
            self._recruit(self._tiles if together else 1)
            self._answer(deque())
        if not together:
            self._parcel = ray.put(replace(parcel, request=replace(parcel.request, tiles=self._facts.tiles)))
            for evaluator in cluster.evaluators:
                if evaluator.evaluation is not self:
                    cluster.open(evaluator, self._parcel, time_limit)

    @property
    def facts(self) -> Facts:
        """See Executor."""
        assert self._facts is not None
        return self._facts

    @property
    def busy(self) -> float:
        """See Executor."""
        return self._busy

    def map(self, tasks: Sequence[Task[_Result]]) -> Iterator[tuple[Task[_Result], _Result]]:
        """See Executor."""
        waiting: deque[Task[Any]] = deque(tasks)
        self._deaths.clear()
        remaining = len(tasks)
        try:
            while remaining:
                self._recruit(remaining)
                self._hand_out(waiting)
                answer = self._answer(waiting)
                if answer is not None:
                    remaining -= 1
                    yield answer
        finally:
            for evaluator in [evaluator for evaluator in self._cluster.evaluators if evaluator.tasks]:
                self._cluster.dismiss(evaluator)

    def close(self) -> None:
        """See Executor. Each evaluation has fresh processes, since the hash of a user's code depends on what was imported."""
        self._cluster.release()

    def _recruit(self, useful: int) -> None:
        """Start evaluators while there is work and room for more. Raises CannotEvaluate where there has long been no room."""
        cluster = self._cluster
        useful = min(useful, self.facts.workers if self._facts is not None and self._facts.draws_itself else useful)
        latest = time.monotonic() + _LONGEST_WAIT
        while not cluster.slots() and not any(evaluator.node for evaluator in cluster.evaluators):
            if time.monotonic() > latest:
                raise CannotEvaluate(f"no node of the cluster has {cluster.wanted()}, which an evaluator needs")
            self._tell_now_and_then(f"waiting for a node with {cluster.wanted()}")
            time.sleep(_LOOK)
        while len(cluster.evaluators) < max(1, min(useful, cluster.slots())):
            cluster.open(cluster.hire(), self._parcel, self._time_limit)

    def _hand_out(self, waiting: deque[Task[Any]]) -> None:
        """Give waiting tasks to the evaluators that have loaded this evaluation, the idle ones first."""
        ready = [evaluator for evaluator in self._cluster.evaluators if evaluator.evaluation is self]
        if self.facts.draws_itself:
            ready = ready[:1]
        for ahead in range(1, _AHEAD + 1):
            for evaluator in ready:
                # The last tasks go to whoever is idle first.
                if len(evaluator.asked) < ahead and len(waiting) > (len(ready) if ahead > 1 else 0):
                    task = waiting.popleft()
                    evaluator.asked[evaluator.actor.execute.remote(task)] = task

    def _answer(self, waiting: deque[Task[Any]]) -> tuple[Task[Any], Any] | None:
        """Wait for an answer, a while at most; return a task and its result if it is one. Raises what the answer says."""
        asked = {reference: evaluator for evaluator in self._cluster.evaluators for reference in evaluator.asked}
        if not asked:
            time.sleep(_LOOK)
            return None
        try:
            ready, _ = ray.wait(list(asked), timeout=_LOOK)
            has_room = any(evaluator.node for evaluator in self._cluster.evaluators)
            self._tell_now_and_then(None if has_room else f"waiting for {self._cluster.wanted()} on a node")
            if not ready:
                return None
            evaluator = asked[ready[0]]
            answer = ray.get(ready[0])
        except LOST as failure:
            self._give_up(evaluator, failure, waiting)
            return None
        except ray.exceptions.RayError as failure:
            raise CannotEvaluate(f"Ray failed ({type(failure).__name__}: {failure}); the same command continues") from None
        task = evaluator.asked.pop(ready[0])
        if task is None:
            self._begin(evaluator, *answer)
            return None
        seconds, result = answer
        if isinstance(result, BaseException):
            raise result
        self._busy += seconds
        work = self._cluster.work[evaluator.node or ""]
        work.tasks, work.seconds = work.tasks + 1, work.seconds + seconds
        return task, result

    def _begin(self, evaluator: RemoteEvaluator, node: str, facts: Facts | BaseException) -> None:
        """Let an evaluator that has loaded the evaluation take part. Raises what it raised, or if it has loaded another one."""
        evaluator.node = node
        if isinstance(facts, BaseException):
            raise facts
        self._loading_deaths = 0
        self._cluster.nodes()
        if self._facts is None:
            workers = 1 if facts.draws_itself else max(1, min(self._cluster.slots(), self._tiles))
            self._facts = replace(facts, workers=workers)
        require_equal(self.facts, facts, "all nodes must have the same files, libraries and processors")
        evaluator.evaluation = self

    def _give_up(self, evaluator: RemoteEvaluator, failure: Exception, waiting: deque[Task[Any]]) -> None:
        """Dismiss an evaluator that is lost, and let its tasks wait again, as the first ones.

        Raises CannotEvaluate if it is not the nodes that die but, again and again, the processes in the same task.
        """
        tasks = evaluator.tasks
        self._cluster.dismiss(evaluator)
        waiting.extendleft(reversed(tasks))
        passing = ray.exceptions.ActorUnavailableError | ray.exceptions.ObjectLostError | ray.exceptions.NodeDiedError
        if isinstance(failure, passing) or self._cluster.is_on_lost_node(evaluator):
            return
        if tasks:
            self._deaths[id(tasks[0])] += 1
            deaths = self._deaths[id(tasks[0])]
        else:
            self._loading_deaths += 1
            deaths = self._loading_deaths
        if deaths >= _DEATHS:
            name = self._facts.model if self._facts is not None else "the model"
            doing = f"in one task ({tasks[0]!r:.200})" if tasks else "while they loaded it"
            reason = " ".join(str(failure).split())
            raise CannotEvaluate(
                f"{name}: {deaths} processes died {doing}, though their nodes live; they may lack memory ({reason:.300})"
            )

    def _tell_now_and_then(self, line: str | None) -> None:
        if time.monotonic() - self._told >= _INTERVAL:
            self._told = time.monotonic()
            if line is None:
                self._cluster.tell_work()
            else:
                self._cluster.tell(line)
