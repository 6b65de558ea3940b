"""Expectation over transformation (Athalye et al. 2018, arXiv:1707.07397)."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from kwbench.gradients.agreement import ENOUGH_AGREEMENT, MOST_DRAWS, Draws, mean_cosine, most_draws
from kwbench.gradients.estimator import Estimate, Estimator, Objective
from kwbench.gradients.exact import Exact
from kwbench.model import Model
from kwbench.randomness import SampleRandom


@dataclass(frozen=True)
class Eot(Estimator):
    """Expectation over transformation: the mean of autograd's gradients over fresh draws of a stochastic model.

    Athalye et al. 2018, "Synthesizing Robust Adversarial Examples" (arXiv:1707.07397).
    `draws: auto` doubles the draws, from 2 up to 64, until the means of two independent halves have a cosine of 0.3, averaged
    over the rows of the call. A deterministic model gets one draw.
    """

    evidence_group = "exact"
    revision = 2

    kind: Literal["eot"] = "eot"
    draws: Draws = 20
    unreachable: Literal["raise", "zero"] = "raise"

    def __post_init__(self) -> None:
        if self.draws != "auto" and self.draws < 1:
            raise ValueError(f"draws: {self.draws} is not positive")

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w) with `draws` forward passes, and as many backward passes for each of the m values."""
        exact = Exact(unreachable=self.unreachable)
        if self.draws != "auto":
            return Estimate.mean([exact(model, x, objective, rng, rows) for _ in range(self.draws)])
        estimates = [exact(model, x, objective, rng, rows)]
        while model.stochastic and len(estimates) < MOST_DRAWS:
            # The mean of as many new draws is independent of the mean of the earlier ones.
            more = [exact(model, x, objective, rng, rows) for _ in estimates]
            agreement = mean_cosine(Estimate.mean(estimates).gradients, Estimate.mean(more).gradients)
            estimates += more
            if agreement >= ENOUGH_AGREEMENT:
                break
        return Estimate.mean(estimates)

    def passes(self, values: int = 1) -> int:
        """See Estimator."""
        return most_draws(self.draws) * (1 + values)

    def doubled(self, times: int) -> Self | None:
        """See Estimator."""
        return None if self.draws == "auto" else replace(self, draws=self.draws * 2**times)
