"""SmoothGrad: the mean gradient under input noise (Smilkov et al. 2017, arXiv:1706.03825)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kwbench.gradients.agreement import ENOUGH_AGREEMENT, MOST_DRAWS, Draws, cosines_of, most_draws
from kwbench.gradients.estimator import Estimate, Objective
from kwbench.gradients.exact import Exact
from kwbench.gradients.noise import NoiseEstimator, noise_for, repeated, shifted, stacked
from kwbench.model import Model
from kwbench.randomness import SampleRandom


@dataclass(frozen=True)
class Smooth(NoiseEstimator):
    """The mean of autograd's gradients over Gaussian input noise (SmoothGrad, arXiv:1706.03825).

    Unlike in the source, noisy images are clipped to [0, 1], because a model need not accept other pixels. The estimator misses
    the slope of jumps of the function; `Es` sees it. `draws: auto` doubles the draws of each sample, from 2 up to 64, until the
    means of two independent halves have a cosine of 0.3.
    """

    evidence_group = "softened"
    revision = 2

    sigma: float | None = None
    kind: Literal["smooth"] = "smooth"
    relative_sigma: float | None = None
    draws: Draws = 20
    unreachable: Literal["raise", "zero"] = "raise"

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w) with `draws` + 1 forward passes, and `draws` backward passes for each of the m values."""
        with torch.no_grad():
            logits = model(x, rows)
        stream = rng.child("smooth")
        if self.draws != "auto":
            values, gradients = self._mean_under_noise(model, x, objective, stream, rows, self.draws)
            return Estimate(logits, values, gradients)
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        values, gradients = self._mean_under_noise(model, x, objective, stream.child(1), rows, 1)
        active, draws = torch.arange(len(x), device=x.device), 1
        while len(active) and draws < MOST_DRAWS:
            # The mean of as many new draws is independent of the mean of the earlier ones.
            numbers = stream.child(2 * draws).take(active)
            more = self._mean_under_noise(model, x[active], _of_rows(objective, active, len(x)), numbers, rows[active], draws)
            agreement = cosines_of(gradients[:, active], more[1]).nan_to_num(1.0).mean(dim=0)
            values[:, active] = (values[:, active] + more[0]) / 2
            gradients[:, active] = (gradients[:, active] + more[1]) / 2
            active, draws = active[agreement < ENOUGH_AGREEMENT], 2 * draws
        return Estimate(logits, values, gradients)

    def passes(self, values: int = 1) -> int:
        """See Estimator."""
        return 1 + most_draws(self.draws) * (1 + values)

    def _mean_under_noise(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None, draws: int
    ) -> tuple[Tensor, Tensor]:
        """Return the means of the objective's values (m, b) and gradients (m, b, c, h, w) over draws of noise."""
        sigma, exact = self.pixel_sigma, Exact(unreachable=self.unreachable)
        total: Estimate | None = None
        # At most as many rows a pass as a tile holds: autograd keeps the activations of every row.
        for noise in noise_for(draws, x, rng, at_once=max(1, model.tile // max(1, len(x)))):
            estimate = exact(model, shifted(x, sigma * noise), stacked(objective, len(noise)), rng, repeated(rows, len(noise)))
            # Add one draw after the other, so that the sum does not depend on how many share a pass.
            parts = (tensor.chunk(len(noise), dim=1) for tensor in (estimate.values, estimate.gradients))
            for values, gradients in zip(*parts, strict=True):
                total = Estimate(estimate.logits, values, gradients) if total is None else total.plus(values, gradients)
        assert total is not None
        return total.values / draws, total.gradients / draws


def _of_rows(objective: Objective, rows: Tensor, size: int) -> Objective:
    """Return the objective of a batch of `size` samples as a function of the logits (r, k) of some of its rows (r,)."""
    return lambda logits: objective(logits.new_zeros((size, logits.shape[1])).index_copy(0, rows, logits))[:, rows]
