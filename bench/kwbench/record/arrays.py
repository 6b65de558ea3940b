"""Outcomes as arrays with one entry per sample: the form in which they are stored, and in which millions can be worked on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kwbench.errors import CannotEvaluate
from kwbench.outcome import Outcome, Status

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Letters = NDArray[np.bytes_]

MISSING = np.iinfo(np.int64).min
"""The integer where an outcome has none."""

_STATUSES = {status.value[:1].encode(): status for status in Status}
_OPTIONAL = ("clean_prediction", "prediction", "surrogate_prediction")


@dataclass(frozen=True, slots=True, eq=False)
class OutcomeArrays:
    """Outcomes of one attack run. The fields are those of `Outcome` without images, each as an array (n,).

    Integers are int64, `MISSING` where there is none, and `distance` is NaN where there is none. Statuses are first letters, as
    in `Tally`; `other_status` is empty where there is none.
    """

    sample: NDArray[np.bytes_]
    index: Integers
    label: Integers
    status: Letters
    clean_prediction: Integers
    prediction: Integers
    distance: Floats
    other_status: Letters
    surrogate_prediction: Integers
    selection_correct: Integers
    selection_draws: Integers
    fresh_correct: Integers
    fresh_draws: Integers
    forwards: Integers
    backwards: Integers
    seconds: Floats
    note: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Self:
        """Return outcomes as arrays, in their order."""

        def integers(name: str) -> Integers:
            values = [getattr(outcome, name) for outcome in outcomes]
            if name in _OPTIONAL:
                values = [MISSING if value is None else value for value in values]
            return np.array(values, dtype=np.int64)

        distances = [outcome.distance for outcome in outcomes]
        if any(distance is not None and not math.isfinite(distance) for distance in distances):
            raise CannotEvaluate("distances must be finite")
        others = [outcome.other_status for outcome in outcomes]
        notes = np.empty(len(outcomes), dtype=object)
        notes[:] = [outcome.note for outcome in outcomes]
        return cls(
            sample=np.array([outcome.sample for outcome in outcomes], dtype=np.bytes_),
            status=np.array([outcome.status[:1] for outcome in outcomes], dtype="S1"),
            distance=np.array([np.nan if distance is None else distance for distance in distances], dtype=np.float64),
            other_status=np.array([b"" if status is None else status[:1] for status in others], dtype="S1"),
            seconds=np.array([outcome.seconds for outcome in outcomes], dtype=np.float64),
            note=notes,
            **{name: integers(name) for name in INTEGERS},
        )

    def outcomes(self) -> list[Outcome]:
        """Return one `Outcome` a sample, in the order of the arrays, without images."""
        columns: dict[str, list[Any]] = {name: getattr(self, name).tolist() for name in FIELDS}
        columns["sample"] = [sample.decode() for sample in columns["sample"]]
        columns["status"] = [_STATUSES[letter] for letter in columns["status"]]
        columns["other_status"] = [_STATUSES[letter] if letter else None for letter in columns["other_status"]]
        for name in _OPTIONAL:
            columns[name] = [None if value == MISSING else value for value in columns[name]]
        columns["distance"] = [None if math.isnan(distance) else distance for distance in columns["distance"]]
        return list(map(Outcome, *columns.values()))

    def take(self, rows: NDArray[Any] | slice) -> Self:
        """Return the outcomes at these positions, or where a mask is True."""
        return type(self)(*(getattr(self, name)[rows] for name in FIELDS))

    def remarkable(self) -> Self:
        """Return the outcomes that are invalid or errors, or have a note."""
        failed = np.isin(self.status, [Status.INVALID[:1].encode(), Status.ERROR[:1].encode()])
        return self.take(failed | (self.note != ""))

    def sorted(self) -> Self:
        """Return the outcomes by position in the split."""
        if bool((np.diff(self.index) >= 0).all()):
            return self
        return self.take(np.argsort(self.index, kind="stable"))

    def first_of_each(self) -> Self:
        """Return the first outcome of each sample, in their order."""
        samples = self.sample.tolist()
        if len(set(samples)) == len(samples):
            return self
        rows = {sample: len(samples) - 1 - row for row, sample in enumerate(reversed(samples))}
        return self.take(np.array(sorted(rows.values()), dtype=np.intp))

    def require_possible(self) -> None:
        """Raise CannotEvaluate if a value is impossible."""
        letters = list(_STATUSES)
        problems = {
            "a status is none of those that there are": (
                ~np.isin(self.status, letters) | ~np.isin(self.other_status, [*letters, b""])
            ),
            "distance and seconds must be finite": ~np.isfinite(self.seconds) | np.isinf(self.distance),
            "distance, passes and seconds are at least 0": (
                (self.distance < 0) | (self.forwards < 0) | (self.backwards < 0) | (self.seconds < 0)
            ),
            "correct draws are between 0 and all draws": (
                (self.selection_correct < 0)
                | (self.selection_correct > self.selection_draws)
                | (self.fresh_correct < 0)
                | (self.fresh_correct > self.fresh_draws)
            ),
        }
        for problem, wrong in problems.items():
            if wrong.any():
                sample = self.sample[wrong][0].decode()
                raise CannotEvaluate(f"an impossible row was refused: sample {sample}: {problem}")


FIELDS = tuple(field.name for field in fields(OutcomeArrays))
INTEGERS = (
    "index",
    "label",
    *_OPTIONAL,
    "selection_correct",
    "selection_draws",
    "fresh_correct",
    "fresh_draws",
    "forwards",
    "backwards",
)


def concatenated(parts: Sequence[OutcomeArrays]) -> OutcomeArrays:
    """Return all outcomes, one part after the other."""
    if len(parts) < 2:
        return parts[0] if parts else OutcomeArrays.of([])
    return OutcomeArrays(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))
