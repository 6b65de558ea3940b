"""Several models in one command: one that fails does not stop the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from kwbench.cli.output import progress_line
from kwbench.errors import CannotEvaluate, KwbenchError, TimeIsUp

if TYPE_CHECKING:
    from kwbench.evaluation.request import Request

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluated(Generic[T]):
    """What came of several models: their results, and the failure of each model that could not be evaluated."""

    results: list[T]
    failures: dict[str, KwbenchError]

    def require_all(self) -> None:
        """Raise an error that names the models that failed; it has their exit code if that is one.

        If time ran out, TimeIsUp names the models that remain, also those that failed.
        """
        if not self.failures:
            return
        if any(isinstance(failure, TimeIsUp) for failure in self.failures.values()):
            failed = {model: failure for model, failure in self.failures.items() if not isinstance(failure, TimeIsUp)}
            reasons = "".join(f"; {model} failed: {failure}" for model, failure in failed.items())
            remaining = ", ".join(model for model in self.failures if model not in failed)
            raise TimeIsUp(
                f"the time is up: {len(self.results)} models are complete, {len(self.failures) - len(failed)} remain "
                f"({remaining}); the same command continues{reasons}"
            )
        count = len(self.failures) + len(self.results)
        reasons = "; ".join(f"{model}: {str(failure).removeprefix(f'{model}: ')}" for model, failure in self.failures.items())
        codes = {type(failure) for failure in self.failures.values()}
        raised = codes.pop() if len(codes) == 1 else CannotEvaluate
        raise raised(f"{len(self.failures)} of {count} models could not be evaluated: {reasons}")


def evaluate_each(requests: "Sequence[Request]", evaluate_one: Callable[[int], T]) -> Evaluated[T]:
    """Evaluate each request by its index. One that fails does not stop the others; a single one raises."""
    results: list[T] = []
    failures: dict[str, KwbenchError] = {}
    for index, request in enumerate(requests):
        try:
            results.append(evaluate_one(index))
        except KwbenchError as failure:
            if len(requests) == 1:
                raise
            failures[request.model] = failure
            if index + 1 < len(requests) and not isinstance(failure, TimeIsUp):
                progress_line(f"{request.model}: failed; the other models follow")
    return Evaluated(results, failures)
