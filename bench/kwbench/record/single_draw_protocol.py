"""Accuracy of a stochastic model under a single-draw protocol, computed from the recorded draws.

Tools such as AutoAttack use this protocol. They predict each sample once at the clean image, and once more after each attack.
They count the sample as broken as soon as one of these checks gives a wrong prediction. Let p(z) be the probability that the
prediction at z is correct. The expected accuracy of the tool is the mean over samples of the product of p over all checks. Even
attacks that change no image lower it from mean p to mean p^k, where k is the number of checks. The effect of the attacks is
only the drop below mean p^k.
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
class SingleDrawAccuracy:
    """Accuracies under a protocol that checks each point with one draw; fractions of 1 with 95 % intervals.

    Attributes:
        checks: number of checks per sample, each with one draw.
        one_run: accuracy in the recorded run: the share of samples whose recorded draw is correct in every check.
        expected: expectation of that accuracy over the model's randomness.
        expected_noop: the same expectation for attacks that change no image.
        lost: `expected_noop` - `expected`, paired by sample: the effect of the attacks.
        corrected: mean p at the clean images minus `lost`.
    """

    checks: int
    one_run: Interval
    expected: Interval
    expected_noop: Interval
    lost: Interval
    corrected: float


def survival_probability(correct: Array, draws: Array, checks: int) -> Array:
    """Return an unbiased estimate of p^checks per sample, from `correct` of `draws` independent draws at one point.

    It is the share of all subsets of `checks` draws in which every prediction is correct. The estimate (correct / draws)^checks
    would be biased upwards.

    Args:
        correct: correct predictions per sample, (n,).
        draws: draws per sample, (n,).
        checks: exponent, at least 1.

    Raises:
        ValueError: there are fewer draws than checks, or `checks` is below 1.
    """
    if checks < 1 or bool((draws < checks).any()):
        raise ValueError(f"{checks} checks need as many draws, and at least 1")
    steps = np.arange(checks)[:, None]
    probabilities: Array = np.prod(np.clip(correct - steps, 0, None) / (draws - steps), axis=0)
    return probabilities


def single_draw_accuracy(
    clean: Sequence[Outcome], attacks: Sequence[Sequence[Outcome]], *, check_clean: bool = True
) -> SingleDrawAccuracy:
    """Return the accuracy under a protocol that checks the clean image (if `check_clean`) and the image after each attack.

    Args:
        clean: outcomes of the clean images.
        attacks: outcomes of each attack on the same samples. Draws must be independent, so no attack may occur twice.
        check_clean: whether a wrong prediction at the clean image counts as broken.

    Raises:
        CannotEvaluate: samples are missing or have no fresh draws. Fresh draws are missing if the model is deterministic, if an
            attack failed, or if a cascade did not score the sample.
    """
    clean_rows = _by_sample(clean)
    attack_rows = [_by_sample(outcomes) for outcomes in attacks]
    if any(rows.keys() != clean_rows.keys() for rows in attack_rows):
        raise CannotEvaluate("all attacks of a single-draw protocol need rows of the same images")
    at_clean = _Draws.of([clean_rows[sample] for sample in clean_rows])
    after_attacks = [_Draws.of([rows[sample] for sample in clean_rows]) for rows in attack_rows]
    checked = [at_clean, *after_attacks] if check_clean else after_attacks
    if not checked:
        raise CannotEvaluate("a single-draw protocol needs at least one check: of the clean images, or after an attack")
    expected: Array = np.prod([draws.share for draws in checked], axis=0)
    noop = survival_probability(at_clean.correct, at_clean.draws, len(checked))
    lost = difference_interval(noop - expected)
    return SingleDrawAccuracy(
        checks=len(checked),
        one_run=accuracy_of_values(np.prod([draws.recorded for draws in checked], axis=0)),
        expected=accuracy_of_values(expected),
        expected_noop=accuracy_of_values(noop),
        lost=lost,
        corrected=float(at_clean.share.mean()) - lost.value,
    )


@dataclass(frozen=True, slots=True)
class _Draws:
    """Per sample: number of correct fresh draws, number of fresh draws, and whether the recorded draw was correct (0 or 1)."""

    correct: Array
    draws: Array
    recorded: Array

    @property
    def share(self) -> Array:
        return self.correct / self.draws

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "_Draws":
        if unscored := [outcome for outcome in outcomes if not outcome.fresh_draws]:
            raise CannotEvaluate(
                f"image {unscored[0].index} has no fresh draws ({unscored[0].status}); "
                "a single-draw protocol needs a stochastic model and attacks that saw every image"
            )
        return cls(
            np.array([outcome.fresh_correct for outcome in outcomes], dtype=np.float64),
            np.array([outcome.fresh_draws for outcome in outcomes], dtype=np.float64),
            np.array([outcome.prediction == outcome.label for outcome in outcomes], dtype=np.float64),
        )


def _by_sample(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    return {outcome.sample: outcome for outcome in outcomes}
