"""The options that say what executes the tasks of an evaluation: processes of this machine, or a Ray cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from kwbench.cli.output import progress_line
from kwbench.cli.panels import RUN, options_of
from kwbench.errors import UsageError
from kwbench.imports import importing

if TYPE_CHECKING:
    from kwbench.evaluation.execution.executors import Executor
    from kwbench.evaluation.request import Request

    OpenExecutor = Callable[[Request, float | None], Executor]


class ExecutorName(StrEnum):
    """The executors that --executor accepts."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """The options of commands whose tasks a Ray cluster can execute; `executor_options` adds them to a command."""

    executor: Annotated[
        ExecutorName,
        typer.Option("--executor", help="local: processes of this machine; ray: the nodes of a cluster.", rich_help_panel=RUN),
    ] = ExecutorName.LOCAL
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of the Ray cluster: auto, ray://HOST:PORT, HOST:PORT, or local to start one here; default: auto.",
            rich_help_panel=RUN,
        ),
    ] = None
    num_gpus: Annotated[
        float | None,
        typer.Option(
            "--num-gpus",
            metavar="NUMBER",
            help="GPUs of an evaluator on Ray, such as 0.5; default: 1 if there is any. CPUs are --threads, default 1.",
            rich_help_panel=RUN,
        ),
    ] = None
    price: Annotated[
        float | None,
        typer.Option(min=0, max=1e9, help="Of an hour of an evaluator, for costs.", rich_help_panel=RUN),
    ] = None

    @property
    def distributed(self) -> bool:
        """Whether tasks leave this machine."""
        return self.executor is ExecutorName.RAY

    @contextmanager
    def opened(self, threads: int | None) -> "Iterator[OpenExecutor]":
        """Yield a function that returns the executor of a request; the connection to a cluster ends with the block.

        Raises UsageError for options that do not fit, or if Ray is not installed; CannotEvaluate if there is no cluster.
        """
        if not self.distributed:
            if self.address is not None or self.num_gpus is not None:
                raise UsageError("--address, --num-gpus: are for a cluster; add --executor ray")
            from kwbench.evaluation.execution.executors import LocalExecutor

            yield LocalExecutor
            return
        if find_spec("ray") is None:
            raise UsageError("--executor ray: Ray is not installed; pip install 'kwbench[ray]'")
        with importing():
            from kwbench.evaluation.execution.cluster import Cluster
            from kwbench.evaluation.execution.ray_executor import RayExecutor

        cluster = Cluster(self.address or "auto", num_gpus=self.num_gpus, threads=threads, price=self.price, tell=progress_line)
        try:
            yield partial(RayExecutor, cluster)
        finally:
            cluster.close()


def executor_options() -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of ExecutorOptions, as one object, its parameter `execution`."""
    return options_of(ExecutorOptions, "execution")
