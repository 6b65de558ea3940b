"""The outcome of one attack on one sample. All numbers about robustness are derived from outcomes."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

# The label of the clean images among the attacks of an evaluation.
CLEAN = "clean"


# The beginning of the note of an outcome whose answer changed when the judge asked a deterministic model again.
ASKED_AGAIN = "asked again"


def escalated(label: str, doubled: int) -> str:
    """Return the label of an attack after so many doublings of its budget: `es`, `es x2`, `es x4`."""
    return f"{label} x{2**doubled}" if doubled else label


class Status(StrEnum):
    """The judge's decision on one sample under one attack.

    For a stochastic model it follows the majority of the fresh draws; its accuracies use the counts instead.
    """

    WRONG = "wrong"  # misclassified before any attack
    BROKEN = "broken"  # the attack found a valid image inside the ball that is misclassified
    HELD = "held"  # the attack found no such image
    INVALID = "invalid"  # the proposal was not a finite image inside the ball
    ERROR = "error"  # the attack raised


# Classes with their probabilities, the most probable one first.
Probabilities = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """An adversarial example in a form that takes little space, for people to look at.

    Attributes:
        clean: the clean image, (c, h, w) in [0, 1].
        residual: adversarial minus clean image in units of `scale`, (c, h, w); None if the image that it gives does not break
            the model.
        scale: the unit of `residual`.
        image: the adversarial image, (c, h, w) in [0, 1], where there is no residual.
        before: the most probable classes of the clean image.
        after: the most probable classes of the adversarial image.
    """

    clean: NDArray[np.float32]
    residual: NDArray[np.int8] | None
    scale: float
    image: NDArray[np.float32] | None
    before: Probabilities
    after: Probabilities

    @property
    def adversarial(self) -> NDArray[np.float32]:
        """The adversarial image, (c, h, w) in [0, 1]."""
        if self.residual is None:
            assert self.image is not None
            return self.image
        moved: NDArray[np.float32] = np.clip(self.clean + np.float32(self.scale) * self.residual, 0.0, 1.0).astype(np.float32)
        return moved


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the record.

    Attributes:
        sample: the hash of the image and its label.
        index: the position of the sample in the split of the data set.
        label: the true class.
        status: the judge's decision.
        clean_prediction: the predicted class of the clean image.
        prediction: the predicted class of the judged image; None without one.
        distance: the distance of the proposal in the norm of the threat model; None if there is nothing to measure.
        other_status: the status under the other judging rule; minimum-norm attacks only.
        surrogate_prediction: the surrogate's predicted class of the judged image; transfer attacks only.
        selection_correct: correct selection draws, which choose the worst attack of a sample. Draws are 0 for deterministic
            models.
        selection_draws: all selection draws.
        fresh_correct: correct fresh draws, which score the chosen attack and which no choice has seen.
        fresh_draws: all fresh draws.
        forwards: forward passes that the attack spent on the sample.
        backwards: backward passes that the attack spent on the sample.
        seconds: the time of the batch, divided evenly among its samples.
        note: what went wrong, for people.
        image: the judged image, (c, h, w) in [0, 1], if it is to be kept. It takes no part in comparisons.
        example: the adversarial example, if it is to be shown. It takes no part in comparisons.
    """

    sample: str
    index: int
    label: int
    status: Status
    clean_prediction: int | None = None
    prediction: int | None = None
    distance: float | None = None
    other_status: Status | None = None
    surrogate_prediction: int | None = None
    selection_correct: int = 0
    selection_draws: int = 0
    fresh_correct: int = 0
    fresh_draws: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    note: str = ""
    image: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    example: Example | None = field(default=None, repr=False, compare=False)
