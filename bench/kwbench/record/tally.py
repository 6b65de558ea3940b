"""The outcomes of an attack run as arrays: all that a summary needs, in a form that millions of rows fit into."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwbench.outcome import Status

_FAILED = (ord(Status.INVALID[0]), ord(Status.ERROR[0]))


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcomes of one attack run. Arrays have one entry per sample, ordered by `index`.

    Attributes:
        index: position of each sample in the split.
        status: first letter of each status.
        selection: share of right selection draws, NaN where a row has no draws; empty for deterministic models.
        fresh: share of right fresh draws, likewise.
        forwards: forward passes, summed over the samples.
        backwards: backward passes, summed over the samples.
        seconds: time, summed over the samples.
        other_rows: rows with a status under the judging rule that was not chosen.
        other_held: how many of these held under that rule.
        surrogate_rows: rows with a prediction of the surrogate.
        surrogate_right: how many of these predictions are right.
        guarded: False where they are on record without a checksum, which shows that they are what was written.
    """

    index: NDArray[np.int64]
    status: NDArray[np.bytes_]
    selection: NDArray[np.float64]
    fresh: NDArray[np.float64]
    forwards: int
    backwards: int
    seconds: float
    other_rows: int
    other_held: int
    surrogate_rows: int
    surrogate_right: int
    guarded: bool = True

    @property
    def failed(self) -> bool:
        """Whether a row is invalid or an error."""
        codes = self.status.view(np.uint8)
        return any(bool((codes == code).any()) for code in _FAILED)

    def __len__(self) -> int:
        return len(self.index)


def shares(correct: NDArray[Any], draws: NDArray[Any]) -> NDArray[np.float64]:
    """Return correct / draws, NaN where there are no draws."""
    quotients: NDArray[np.float64] = np.divide(correct, draws, out=np.full(correct.shape, np.nan), where=draws > 0)
    return quotients
