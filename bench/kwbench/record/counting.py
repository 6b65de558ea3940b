"""What the tools of papers would count on a stochastic model, from the same draws as the honest number.

Such a tool looks at each image with one draw, at the clean image and again after each attack, and calls it broken as soon as
one look is wrong. With p(z) = P(the answer at z is right), that counts the mean over images of the product of p over all
looks, and even an attack that does nothing, looked at k times, brings the accuracy from mean p to mean p^k. An attack's own
doing is what is left below that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwbench.errors import CannotEvaluate
from kwbench.outcome import Outcome
from kwbench.statistics import Interval, accuracy_of_values, difference_interval

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Counted:
    """A protocol's count, with 95 % intervals.

    `looks` are the draws that decide about an image. `single` is the share that one actual run got: right at every look's
    recorded draw. `counted` is what such runs get in expectation, `noop` what they would get if no attack moved any image.
    `corrected` is mean p at the clean images less what the attacks took away, `noop` - `counted`.
    """

    looks: int
    single: Interval
    counted: Interval
    noop: Interval
    taken: Interval
    corrected: float


def all_right(correct: Array, draws: Array, looks: int) -> Array:
    """An unbiased estimate of p^looks, one for each image, from `correct` of `draws` independent draws at one point.

    It is the share of right answers among all choices of `looks` different draws; the power of the share itself is too large.
    Raises ValueError if there are fewer draws than looks.
    """
    if looks < 1 or bool((draws < looks).any()):
        raise ValueError(f"{looks} looks need as many draws, at least 1")
    steps = np.arange(looks)[:, None]
    shares: Array = np.prod(np.clip(correct - steps, 0, None) / (draws - steps), axis=0)
    return shares


def count(clean: Sequence[Outcome], attacks: Sequence[Sequence[Outcome]], *, look_at_clean: bool = True) -> Counted:
    """What a tool counts that looks at the clean image (unless it does not), and once after each of the attacks, in turn.

    Every sequence holds one outcome for each image, of the same images. The attacks' draws must be independent of each other:
    no attack twice. Raises CannotEvaluate if images are missing, or have no fresh draws: rows of a deterministic model, of an
    attack that failed, and rows that a cascade did not score.
    """
    here = _rows(clean)
    after = [_rows(outcomes) for outcomes in attacks]
    if any(rows.keys() != here.keys() for rows in after):
        raise CannotEvaluate("the attacks of a count must have met the same images")
    first = [_Draws.of([here[sample] for sample in here])]
    others = [_Draws.of([rows[sample] for sample in here]) for rows in after]
    seen = first * look_at_clean + others
    looks = len(seen)
    if not looks:
        raise CannotEvaluate("a count needs a look: at the clean images, or after an attack")
    counted: Array = np.prod([draws.share for draws in seen], axis=0)
    noop = all_right(first[0].correct, first[0].draws, looks)
    taken = difference_interval(noop - counted)
    return Counted(
        looks=looks,
        single=accuracy_of_values(np.prod([draws.single for draws in seen], axis=0)),
        counted=accuracy_of_values(counted),
        noop=accuracy_of_values(noop),
        taken=taken,
        corrected=float(first[0].share.mean()) - taken.value,
    )


@dataclass(frozen=True, slots=True)
class _Draws:
    """For each image: right answers among fresh draws, how many these were, and whether the one recorded draw was right."""

    correct: Array
    draws: Array
    single: Array

    @property
    def share(self) -> Array:
        return self.correct / self.draws

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "_Draws":
        if unscored := [each for each in outcomes if not each.fresh_draws]:
            raise CannotEvaluate(
                f"image {unscored[0].index} has no fresh draws ({unscored[0].status}); "
                "counts are for stochastic models and attacks that met every image"
            )
        return cls(
            np.array([each.fresh_correct for each in outcomes], dtype=np.float64),
            np.array([each.fresh_draws for each in outcomes], dtype=np.float64),
            np.array([each.prediction == each.label for each in outcomes], dtype=np.float64),
        )


def _rows(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {each.sample: each for each in outcomes}
