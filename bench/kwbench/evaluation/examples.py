"""Which adversarial examples of an evaluation are stored: the worst cases of the first broken samples."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kwbench.evaluation.assignment import Assignment
from kwbench.evaluation.request import Facts
from kwbench.outcome import Outcome, Status
from kwbench.record.cascade import Stage


class ExampleChoice:
    """Chooses examples among the outcomes of one stage of an evaluation, as they come in.

    An example is stored if nothing before it broke its sample (of a stochastic model: if it beats everything before it), and
    if fewer than `limit` broken samples precede its sample in the slice.
    """

    def __init__(self, facts: Facts, stage: Stage, clean: Sequence[Outcome], limit: int) -> None:
        self._position = {sample: row for row, sample in enumerate(facts.samples)}
        self._limit = limit
        right = np.array([outcome.status is not Status.WRONG for outcome in clean])
        self._open = stage.best > 0
        self._broken = right & (stage.best < 0.5)

    def of(self, outcomes: Sequence[Outcome], assignment: Assignment) -> list[Outcome]:
        """Return the outcomes, without the examples that are not stored."""
        for outcome in outcomes:
            if outcome.status is Status.BROKEN:
                self._broken[self._position[outcome.sample]] = True
        return [outcome if self._is_stored(outcome, assignment) else replace(outcome, example=None) for outcome in outcomes]

    def _is_stored(self, outcome: Outcome, assignment: Assignment) -> bool:
        if outcome.example is None or outcome.status is not Status.BROKEN:
            return False
        position = self._position[outcome.sample]
        improves = self._open[position] if assignment.shares is None else assignment.keeps_image(outcome)
        return bool(improves) and int(self._broken[:position].sum()) < self._limit
