"""The subject of a check: a model, the samples to examine it on, and ways to measure it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.search.losses import fooled
from kwbench.data import Batch
from kwbench.gradients import EXACT, CutGradientError, Estimate, Gradient, Objective
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Fresh draws for the accuracy of one sample under a stochastic model.
DRAWS = 10


@dataclass(frozen=True)
class Question:
    """The samples to examine, by their positions in the slice, all correctly classified before any attack.

    `robust` holds their robust accuracies, or is empty if those are unknown.
    """

    rows: tuple[int, ...]
    robust: tuple[float, ...] = ()


@dataclass(frozen=True)
class Case:
    """One model under examination.

    Attributes:
        model: the model.
        batch: samples that are classified correctly before any attack.
        threat: the threat model of the evaluation.
        seed: the seed of the evaluation.
        robust: the robust accuracies of the samples; empty if unknown.
        precision: the precision in which attacks on exact gradients search.
    """

    model: Model
    batch: Batch
    threat: ThreatModel
    seed: int
    robust: Sequence[float] = ()
    precision: Precision = "float32"

    def random(self, check: str) -> SampleRandom:
        """Return one stream of random numbers per sample for a check, and restart the model's own randomness."""
        self.same_draws(check)
        return SampleRandom(self.seed, f"diagnose {check}", self.batch.samples)

    def same_draws(self, *address: object) -> None:
        """Make the model's own randomness repeat what it did after the last call with this address."""
        self.model.reseed(self.seed, "diagnose", *address, *self.batch.samples)

    def accuracy(self, z: Tensor) -> Tensor:
        """Return the accuracy (b,) on each of z (b, c, h, w): 0 or 1, or the share of correct fresh draws."""
        if not self.model.stochastic:
            with torch.no_grad():
                return (~fooled(self.model(z), self.batch.y)).float()
        correct, _ = self.model.count_correct(z, self.batch.y, DRAWS)
        return correct / DRAWS

    def estimate(self, x: Tensor, objective: Objective, rng: SampleRandom, gradient: Gradient = EXACT) -> Estimate:
        """Estimate the gradient of an objective at x (b, c, h, w); zero where no graph leads back to the pixels."""
        try:
            return gradient(self.model, x, objective, rng)
        except CutGradientError:
            pass
        with torch.no_grad():
            logits = self.model(x)
            values = objective(logits)
        return Estimate(logits, values, x.new_zeros((len(values), *x.shape)))

    def values_under_same_draws(self, check: str, objective: Objective, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the objective (b,) at each batch of images (b, c, h, w), all under the same draws of the model."""
        values = []
        for images in inputs:
            self.same_draws(check)
            with torch.no_grad():
                values.append(objective(self.model(images))[0])
        return values

    def samples(self, concerned: Tensor) -> tuple[str, ...]:
        """Return the hashes of the samples for which `concerned` (b,) is true."""
        return tuple(self.batch.samples[row] for row in concerned.nonzero().flatten().tolist())


def percent(share: float) -> str:
    """Return a share as whole percent."""
    return f"{100 * share:.0f} %"
