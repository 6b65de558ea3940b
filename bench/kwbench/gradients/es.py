"""Gradients from function values, by antithetic finite differences (Tramer et al. 2020, arXiv:2002.08347, section 5)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kwbench.gradients.estimator import Estimate, Objective
from kwbench.gradients.noise import NoiseEstimator, noise_for, repeated, shifted, stacked
from kwbench.model import Model
from kwbench.randomness import SampleRandom


@dataclass(frozen=True)
class Es(NoiseEstimator):
    """Antithetic differences of function values along Gaussian directions, without autograd: the gradient of the smoothed
    objective, jumps included.

    The estimator with which Tramer et al. 2020 (arXiv:2002.08347, section 5) broke k-WTA. Unlike in the source, query points
    are clipped to [0, 1], because a model need not accept other pixels; at pixels of 0 and 1 this halves the slope. Both ends
    of a difference get the same random numbers of a stochastic model, so that its noise cancels.
    """

    evidence_group = "gradient-free"
    revision = 2

    sigma: float | None = None
    kind: Literal["es"] = "es"
    relative_sigma: float | None = None
    draws: int = 50  # antithetic pairs

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w) with 2 * `draws` + 1 forward passes and no backward pass."""
        sigma = self.pixel_sigma
        with torch.no_grad():
            logits = model(x, rows)
            values = objective(logits)
            gradients = x.new_zeros((len(values), *x.shape))
            for noise in noise_for(self.draws, x, rng.child("es")):
                objective_of_all, rows_of_all = stacked(objective, len(noise)), repeated(rows, len(noise))
                with model.same_draws():
                    up = objective_of_all(model(shifted(x, sigma * noise), rows_of_all))
                    down = objective_of_all(model(shifted(x, -sigma * noise), rows_of_all))
                rise = up - down
                # Where an answer is not finite, nothing is known of the slope.
                rise = torch.where(rise.isfinite(), rise, 0).view(-1, *noise.shape[:2])
                gradients += torch.einsum("mdb,dbchw->mbchw", rise, noise)
        return Estimate(logits, values, gradients / (2 * sigma * self.draws))

    def passes(self, values: int = 1) -> int:
        """See Estimator."""
        return 1 + 2 * self.draws
