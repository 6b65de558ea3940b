"""Tasks: the units of work that an executor distributes. Each is a small picklable value and idempotent.

`rows` are positions in the slice that the evaluation covers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from kwbench.checks import Question, Retried, Survivors
from kwbench.errors import CannotEvaluate
from kwbench.experiments import Experiment
from kwbench.finding import Finding
from kwbench.outcome import Outcome
from kwbench.record.measurement import Array

if TYPE_CHECKING:
    from kwbench.evaluation.execution.evaluator import LocalEvaluator

R_co = TypeVar("R_co", covariant=True)


class Task(Generic[R_co]):
    """A unit of work whose result is an `R_co`."""

    def run(self, evaluator: "LocalEvaluator") -> R_co:
        """Carry the task out with the model, data and attacks that an evaluator holds."""
        raise NotImplementedError


@dataclass(frozen=True)
class JudgeClean(Task[list[Outcome]]):
    """Predict the clean images of `rows`."""

    rows: Sequence[int]

    def run(self, evaluator: "LocalEvaluator") -> list[Outcome]:
        """Return one outcome a row."""
        try:
            return evaluator.judge_clean(self.rows)
        except (torch.OutOfMemoryError, MemoryError):
            first = _first_half(evaluator, self.rows)
        return [outcome for rows in (self.rows[:first], self.rows[first:]) for outcome in JudgeClean(rows).run(evaluator)]


@dataclass(frozen=True)
class JudgeAttack(Task[list[Outcome]]):
    """Run the attack `label` on `rows` and judge its proposals.

    `clean` are the rows' outcomes on the clean images; `to_beat` as in `judge.judge`.
    """

    label: str
    rows: Sequence[int]
    clean: Sequence[Outcome]
    to_beat: Sequence[int] | None

    def run(self, evaluator: "LocalEvaluator") -> list[Outcome]:
        """Return one outcome a row."""
        try:
            return evaluator.judge(self.label, self.rows, self.clean, self.to_beat)
        except (torch.OutOfMemoryError, MemoryError):
            first = _first_half(evaluator, self.rows)
        return [outcome for half in (slice(first), slice(first, None)) for outcome in self._part(half).run(evaluator)]

    def _part(self, part: slice) -> "JudgeAttack":
        to_beat = None if self.to_beat is None else self.to_beat[part]
        return JudgeAttack(self.label, self.rows[part], self.clean[part], to_beat)


@dataclass(frozen=True)
class RunCheck(Task[list[Finding]]):
    """Run one check of the model."""

    check: str
    question: Question

    def run(self, evaluator: "LocalEvaluator") -> list[Finding]:
        """Return the check's findings."""
        return evaluator.run_check(self.check, self.question)


@dataclass(frozen=True)
class RetrySurvivors(Task[Retried]):
    """Attack some survivors again at twice the budget."""

    survivors: Survivors

    def run(self, evaluator: "LocalEvaluator") -> Retried:
        """Return the survivors' accuracies before and after."""
        return evaluator.retry(self.survivors)


@dataclass(frozen=True)
class Observe(Task[dict[str, Array]]):
    """Run an experiment on `rows`."""

    rows: Sequence[int]
    experiment: Experiment

    def run(self, evaluator: "LocalEvaluator") -> dict[str, Array]:
        """Return the experiment's arrays by name."""
        return evaluator.observe(self.rows, self.experiment)


def _first_half(evaluator: "LocalEvaluator", rows: Sequence[int]) -> int:
    """Return how many rows to run first after memory ran out: whole tiles, about half. Raises CannotEvaluate for one tile."""
    tile, largest = evaluator.tile, evaluator.model.largest_tile
    torch.cuda.empty_cache()
    if len(rows) <= tile:
        lack = f"{evaluator.facts.model}: memory does not hold {largest} samples at once"
        if largest > tile:
            raise CannotEvaluate(f"{lack}, the tile that a trial chose here; give a smaller one: --tile {largest // 2}")
        raise CannotEvaluate(f"{lack}; give a smaller --tile")
    return -(-len(rows) // tile // 2) * tile
