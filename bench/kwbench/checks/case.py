"""What a check is given, and what it measures with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.search.losses import fooled
from kwbench.data import Batch
from kwbench.finding import Finding, Kind
from kwbench.gradients import EXACT, Estimate, Gradient, Objective
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Fresh draws behind a sample's accuracy in a check.
DRAWS = 10


@dataclass(frozen=True)
class Question:
    """What is to be examined, by positions in the slice: a tile of samples that were right before any attack, `robust` being
    their robust accuracies if they are known."""

    rows: tuple[int, ...]
    robust: tuple[float, ...] = ()


@dataclass(frozen=True)
class Case:
    """One model under examination.

    `batch` holds samples that were right before any attack; `robust` are their robust accuracies, if known. `precision` is that
    in which attacks on exact gradients search.
    """

    model: Model
    batch: Batch
    threat: ThreatModel
    seed: int
    robust: Sequence[float] = ()
    precision: Precision = "float32"

    def random(self, check: str) -> SampleRandom:
        """The random numbers of a check, one stream a sample; the model's own start anew."""
        self.same_draws(check)
        return SampleRandom(self.seed, f"diagnose {check}", self.batch.samples)

    def same_draws(self, *address: object) -> None:
        """Let the model's own randomness repeat what it did after the last call with this address."""
        self.model.reseed(self.seed, "diagnose", *address, *self.batch.samples)

    def right(self, z: Tensor) -> Tensor:
        """The accuracy of each z (b, c, h, w), as (b,): 0 or 1, or the share of right answers in fresh draws."""
        if not self.model.stochastic:
            with torch.no_grad():
                return (~fooled(self.model(z), self.batch.y)).float()
        correct, _ = self.model.count_correct(z, self.batch.y, DRAWS)
        return correct / DRAWS

    def slope(self, x: Tensor, objective: Objective, rng: SampleRandom, gradient: Gradient = EXACT) -> Estimate:
        """What an estimator says at x; gradients of zero where no graph leads from the logits back to the pixels."""
        try:
            return gradient(self.model, x, objective, rng)
        except RuntimeError as failure:
            if "does not require grad" not in str(failure) and "not have been used in the graph" not in str(failure):
                raise
        with torch.no_grad():
            logits = self.model(x)
            values = objective(logits)
        return Estimate(logits, values, x.new_zeros((len(values), *x.shape)))

    def finding(
        self,
        check: str,
        figure: float,
        threshold: float,
        statement: str,
        kind: Kind,
        *,
        fires: bool | None = None,
        concerned: Tensor | None = None,
    ) -> Finding:
        """A finding that fires where the figure exceeds the threshold unless said otherwise. `concerned`: samples (b,)."""
        fired = figure > threshold if fires is None else fires
        samples = () if concerned is None else tuple(self.batch.samples[row] for row in concerned.nonzero().flatten().tolist())
        return Finding(check, round(figure, 6), threshold, bool(fired), statement, samples, kind)


def percent(share: float) -> str:
    """A share as whole percent."""
    return f"{100 * share:.0f} %"
