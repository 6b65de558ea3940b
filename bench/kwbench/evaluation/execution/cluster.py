"""A Ray cluster: its nodes, and evaluators on them, each an actor that holds one evaluation at a time.

https://docs.ray.io/en/latest/ray-core/actors.html
"""

import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.evaluation.execution.evaluator import Evaluator, open_evaluator, result_or_failure
from kwbench.evaluation.execution.parcel import Parcel
from kwbench.evaluation.execution.tasks import Task
from kwbench.evaluation.request import Request

# What Ray raises when the process of an actor has ended, or its node, or the node that holds a result.
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)
# Seconds for which what is known about the nodes is used again.
_FRESH = 1.0
# Seconds that evaluators have to end, and a cluster to answer.
_PATIENCE = 5.0
# Ray counts GPUs in units of this.
_LEAST_GPU = 1e-4


class EvaluatorActor:
    """An evaluator on a node. Its methods return the exceptions that its driver raises."""

    def __init__(self) -> None:
        self._name = ""
        self._evaluator: Evaluator | None = None
        self._folder: Path | None = None

    def open(self, parcel: Parcel, time_limit: float | None, threads: int) -> Any:
        """Load an evaluation in place of the one before; return the id of the node, and the facts or the exception."""
        self.close()
        request, self._folder = parcel.unpack()
        os.chdir(self._folder)
        self._name = request.model
        opened = result_or_failure(self._name, lambda: open_evaluator(request, time_limit, threads))
        node = ray.get_runtime_context().get_node_id()
        if isinstance(opened, BaseException):
            return node, opened
        self._evaluator = opened
        return node, opened.facts

    def execute(self, task: Task[Any]) -> Any:
        """Return the seconds that a task took, and its result or the exception."""
        evaluator, started = self._evaluator, time.perf_counter()
        assert evaluator is not None
        result = result_or_failure(self._name, lambda: evaluator.execute(task))
        return time.perf_counter() - started, result

    def close(self) -> None:
        """Release the evaluation, and remove its files."""
        if self._evaluator is not None:
            self._evaluator.close()
            self._evaluator = None
        if self._folder is not None:
            os.chdir(self._folder.parent)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


@dataclass(eq=False)
class RemoteEvaluator:
    """An evaluator on a node, as its driver sees it.

    Attributes:
        actor: Ray's handle.
        node: The id of its node, known once it has loaded its first evaluation.
        evaluation: What it has loaded, as the driver identifies it; None while it loads.
        losses: How many nodes had been lost when it was started.
        asked: What it is working on, the first one first, by the reference of its answer; None stands for loading.
    """

    actor: Any
    node: str | None = None
    evaluation: object = None
    losses: int = 0
    asked: dict[Any, Task[Any] | None] = field(default_factory=dict)

    @property
    def tasks(self) -> list[Task[Any]]:
        """The tasks that it works on."""
        return [task for task in self.asked.values() if task is not None]


@dataclass
class NodeWork:
    """What a node has done: finished tasks, and their seconds summed over its evaluators."""

    name: str
    tasks: int = 0
    seconds: float = 0.0


class Cluster:
    """A connection to a Ray cluster, and the evaluators that one command has there."""

    def __init__(
        self,
        address: str = "auto",
        *,
        num_gpus: float | None = None,
        threads: int | None = None,
        price: float | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Connect to the cluster at an address: `auto`, ray://HOST:PORT, HOST:PORT, or `local`, which starts one here.

        An evaluator takes `threads` CPUs, by default one, and `num_gpus` GPUs, by default one if there is any. `tell` is called
        with news about nodes, one line each, with costs if an hour of an evaluator has a `price`.

        Raises CannotEvaluate if there is no cluster, UsageError for another address, or a number of GPUs that Ray cannot give.
        """
        if num_gpus is not None and not (
            num_gpus == 0 or _LEAST_GPU <= num_gpus <= 1 or (num_gpus.is_integer() and num_gpus > 0)
        ):
            raise UsageError(f"--num-gpus {num_gpus:g}: write a fraction of one GPU, or a whole number")
        self._threads, self._price, self.tell = threads or 1, price, tell
        self.evaluators: list[RemoteEvaluator] = []
        self.work: dict[str, NodeWork] = {}
        self._nodes: dict[str, dict[str, float]] = {}
        self._looked = -float("inf")
        self._losses = 0
        self._own = _connect(address)
        self._make_actor = ray.remote(max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD")(EvaluatorActor)
        has_gpus = any(node.get("GPU", 0) > 0 for node in self.nodes().values())
        self._gpus = float(has_gpus) if num_gpus is None else num_gpus

    def close(self) -> None:
        """End the evaluators and the connection, and tell what the nodes have done."""
        self.tell_work()
        self.release()
        if self._own:
            ray.shutdown()

    def release(self) -> None:
        """End the evaluators."""
        # Those that are idle remove their files.
        if idle := [evaluator for evaluator in self.evaluators if not evaluator.asked]:
            with suppress(ray.exceptions.RayError):
                ray.get([evaluator.actor.close.remote() for evaluator in idle], timeout=_PATIENCE)
        for evaluator in list(self.evaluators):
            self.dismiss(evaluator)

    def settled(self, request: Request) -> Request:
        """Return the request with the device and the threads of the evaluators.

        Raises UsageError if it asks for a GPU that they do not have, or for a certain one.
        """
        if ":" in request.device:
            raise UsageError(f"--device {request.device}: Ray chooses the GPU of each evaluator; write cuda")
        if request.device == "cuda" and not self._gpus:
            raise UsageError("--device cuda: the nodes have no GPU, or --num-gpus is 0")
        device = request.device if self._gpus else "cpu"
        return replace(request, device=device, threads=self._threads)

    def open(self, evaluator: RemoteEvaluator, parcel: Any, time_limit: float | None) -> None:
        """Ask an evaluator to load an evaluation, whose parcel is in the object store."""
        evaluator.evaluation, evaluator.asked = None, {}
        evaluator.asked[evaluator.actor.open.remote(parcel, time_limit, self._threads)] = None

    def hire(self) -> RemoteEvaluator:
        """Start another evaluator, wherever there is room for it."""
        actor = self._make_actor.options(num_cpus=self._threads, num_gpus=self._gpus).remote()
        self.evaluators.append(RemoteEvaluator(actor, losses=self._losses))
        return self.evaluators[-1]

    def dismiss(self, evaluator: RemoteEvaluator) -> None:
        """End an evaluator, whatever it works on."""
        self.evaluators.remove(evaluator)
        with suppress(ray.exceptions.RayError):
            ray.kill(evaluator.actor)

    def nodes(self) -> dict[str, dict[str, float]]:
        """Return the resources of the nodes that are alive, by their id; tell which came and went."""
        if time.monotonic() - self._looked < _FRESH:
            return self._nodes
        rows: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = {row["NodeID"]: row for row in rows if row["Alive"]}
        for node, row in alive.items():
            self.work.setdefault(node, NodeWork(f"{row['NodeManagerHostname']} ({node[:6]})"))
            if self._nodes and node not in self._nodes:
                self.tell(f"node {self.work[node].name} has joined")
        for node in self._nodes.keys() - alive.keys():
            self._losses += 1
            self.tell(f"node {self.work[node].name} is lost; other nodes continue its tasks")
        self._nodes, self._looked = {node: dict(row["Resources"]) for node, row in alive.items()}, time.monotonic()
        return self._nodes

    def is_on_lost_node(self, evaluator: RemoteEvaluator) -> bool:
        """Return whether an evaluator's node is lost; or any node since it was started, if its own is not known yet."""
        self._looked = -float("inf")
        nodes = self.nodes()
        return self._losses > evaluator.losses if evaluator.node is None else evaluator.node not in nodes

    def slots(self) -> int:
        """Return how many evaluators the nodes that are alive have room for."""
        return sum(self._slots_of(node) for node in self.nodes().values())

    def _slots_of(self, node: dict[str, float]) -> int:
        slots = int(node.get("CPU", 0) // self._threads)
        if not self._gpus:
            return slots
        gpus = int(node.get("GPU", 0))
        return min(slots, gpus * int(1 / self._gpus) if self._gpus <= 1 else int(gpus // self._gpus))

    def tell_work(self) -> None:
        """Tell what each node has done so far, and what it cost."""
        parts = []
        for work in self.work.values():
            cost = "" if self._price is None else f", cost {work.seconds / 3600 * self._price:.4g}"
            if work.tasks:
                parts.append(f"{work.name} {work.tasks} tasks, {work.seconds:.0f} s{cost}")
        if parts:
            self.tell(f"nodes: {'; '.join(parts)}")

    def wanted(self) -> str:
        """Return what an evaluator needs, for messages."""
        cpus = f"{self._threads} CPU{'s' * (self._threads > 1)}"
        return f"{cpus} and {self._gpus:g} GPU{'s' * (self._gpus > 1)}" if self._gpus else cpus


def _connect(address: str) -> bool:
    """Connect this process, unless it is connected; return whether it was not. Raises CannotEvaluate or UsageError."""
    if ray.is_initialized():
        return False
    # The use of kwbench is nobody's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if (colon or address.startswith("ray://")) and not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UsageError(f"--address {address}: write auto, local, HOST:PORT or ray://HOST:PORT")
    options: dict[str, Any] = {"address": address} if address != "local" else {"address": "local", "include_dashboard": False}
    try:
        if colon:
            # Ray itself would try for minutes.
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
        with _signals_kept():
            # What the code of a model prints is kept in Ray's logs on the node.
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except SystemExit:
        # Ray's answer to SIGTERM.
        raise KeyboardInterrupt from None
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as failure:
        reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        raise CannotEvaluate(
            f"--address {address}: no Ray cluster answers ({reason}); `ray start --head` starts one, --address local one for "
            "this command alone"
        ) from None
    return True


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the command's signal handlers, which Ray replaces."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError, TypeError):
                signal.signal(number, handler)
