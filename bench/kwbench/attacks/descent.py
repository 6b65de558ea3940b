"""The loop that FGSM, PGD, MIM and transfer attacks share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.losses import LOSSES, LossName, fooled
from kwbench.geometry import norms, project, steepest
from kwbench.gradients import Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class Descent:
    """Steps along the steepest direction of a loss, each followed by projection into the ball and the pixel range.

    `step_size` is in the norm's unit. With `decay` the direction is that of a running sum, old sum times `decay` plus the
    gradient over its l1 norm (Dong et al. 2018, arXiv:1710.06081, eq. 6).
    """

    steps: int
    step_size: float
    loss: LossName
    gradient: Gradient
    early_exit: bool
    decay: float | None = None

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        rng: SampleRandom,
        *,
        start: Tensor,
        rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Images near x (b, c, h, w), from `start` on, and which of them (b,) were seen misclassified on the way.

        Only with `early_exit` does it look, and never at the last iterate: the judge does that. `rows` are the samples'
        places in the metered batch.
        """
        early_exit = self.early_exit and not model.stochastic
        final, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        active = torch.arange(len(x), device=x.device)
        z, velocity = start, torch.zeros_like(start)
        loss = LOSSES[self.loss]
        for step in range(self.steps):
            labels = y[active]

            def objective(logits: Tensor, labels: Tensor = labels) -> Tensor:
                return loss(logits, labels)[None]

            estimate = self.gradient(model, z, objective, rng.take(active).child(step), rows[active])
            gradient = estimate.gradients[0]
            if early_exit:
                done = fooled(estimate.logits, labels)
                final[active[done]], broken[active[done]] = z[done], True
                active, z, gradient, velocity = active[~done], z[~done], gradient[~done], velocity[~done]
                if not len(active):
                    return final, broken
                settled = torch.zeros(len(z), dtype=torch.bool, device=z.device)
            else:
                # Not-a-number is what the judge calls broken; its gradient would lead out of the pixels.
                settled = ~estimate.logits.isfinite().all(dim=1)
            if self.decay is not None:
                length = norms(gradient, "l1").clamp_min(1e-30).view(-1, 1, 1, 1)
                velocity = self.decay * velocity + gradient / length
                gradient = velocity
            moved = project(z + self.step_size * steepest(gradient, threat.norm), x[active], threat)
            z = torch.where(settled.view(-1, 1, 1, 1), z, moved)
        final[active] = z
        return final, broken
