"""What happened to one sample under one attack: the only thing that is ever stored about robustness."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

# The label of the images themselves among the attacks of an evaluation.
CLEAN = "clean"


def escalated(label: str, doubled: int) -> str:
    """The label of an attack whose budget was doubled so many times: `es`, `es x2`, `es x4`."""
    return f"{label} x{2**doubled}" if doubled else label


class Status(StrEnum):
    """The judge's word on one sample under one attack.

    For a stochastic model the word follows the majority of the fresh draws; its accuracies use the counts instead.
    """

    WRONG = "wrong"  # misclassified before any attack
    BROKEN = "broken"  # the attack found a valid image inside the ball that is misclassified
    HELD = "held"  # it did not
    INVALID = "invalid"  # the proposal was not a finite image inside the ball
    ERROR = "error"  # the attack raised


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the record.

    `sample` is the hash of the image and its label, `index` its position in the data set's split.
    `distance` is in the threat model's norm, None where there is no proposal to measure.
    The draw counts are zero for deterministic models; for stochastic ones, selection draws choose the worst attack
    of a sample and fresh draws, which no choice has seen, score it.
    """

    sample: str
    index: int
    label: int
    status: Status
    clean_prediction: int | None = None
    prediction: int | None = None
    distance: float | None = None
    # Minimum-norm attacks only: the status under the judging rule that was not chosen.
    other_status: Status | None = None
    # Transfer attacks only: what the surrogate itself says about the proposal.
    surrogate_prediction: int | None = None
    selection_correct: int = 0
    selection_draws: int = 0
    fresh_correct: int = 0
    fresh_draws: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    note: str = ""
    # The image that was judged, (c, h, w), where it is to be kept. It is evidence for the row and no part of it.
    image: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
