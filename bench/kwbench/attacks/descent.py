"""The loop that FGSM, PGD, MIM and transfer attacks share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.attack import misclassified
from kwbench.attacks.losses import LOSSES, LossName
from kwbench.geometry import norms, project, steepest
from kwbench.gradients import Exact, Gradient
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class Descent:
    """Steps along the steepest direction of a loss, each followed by projection into the ball and the pixel range.

    `step_size` is in the norm's unit. With `decay` the direction is that of a running sum, old sum times `decay` plus the
    gradient over its l1 norm (Dong et al. 2018, arXiv:1710.06081, eq. 6). In `precision` bfloat16 no sample stops before
    float32 agrees that it is misclassified.
    """

    steps: int
    step_size: float
    loss: LossName
    gradient: Gradient
    early_exit: bool
    decay: float | None = None
    precision: Precision = "float32"

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
        loss = LOSSES[self.loss]
        # As many samples as one pass takes at a time, and whoever is done makes room for the next. Estimators that draw noise
        # address it by the step, so theirs go all together.
        together = model.stochastic or not isinstance(self.gradient, Exact)
        with model.searching(self.precision):
            room = len(x) if together else model.sizes(gradients=True)[0]
        active = torch.arange(min(room, len(x)), device=x.device)
        entered = len(active)
        images, labels, z, velocity = x[active], y[active], start[active], torch.zeros_like(start[active])
        taken = torch.zeros_like(active)
        while len(active):

            def objective(logits: Tensor, labels: Tensor = labels) -> Tensor:
                return loss(logits, labels)[None]

            stream = rng.take(active).child(int(taken[0])) if together else rng
            with model.searching(self.precision):
                estimate = self.gradient(model, z, objective, stream, rows[active])
            gradient = estimate.gradients[0]
            if early_exit:
                settled = misclassified(model, z, estimate.logits, labels, rows[active], self.precision)
                broken[active[settled]] = True
            else:
                # Not-a-number is what the judge calls broken; its gradient would lead out of the pixels.
                settled = ~estimate.logits.isfinite().all(dim=1)
            if self.decay is not None:
                length = norms(gradient, "l1").clamp_min(1e-30).view(-1, 1, 1, 1)
                gradient = velocity = self.decay * velocity + gradient / length
            moved = project(z + self.step_size * steepest(gradient, threat.norm), images, threat)
            z = torch.where(settled.view(-1, 1, 1, 1), z, moved) if bool(settled.any()) else moved
            taken += 1
            over = taken >= self.steps
            if early_exit:
                over |= settled
            if bool(over.any()):
                final[active[over]] = z[over]
                stay, enter = ~over, torch.arange(entered, min(entered + int(over.sum()), len(x)), device=x.device)
                entered += len(enter)
                active = torch.cat([active[stay], enter])
                images, labels = x[active], y[active]
                z = torch.cat([z[stay], start[enter]])
                velocity = torch.cat([velocity[stay], torch.zeros_like(start[enter])])
                taken = torch.cat([taken[stay], torch.zeros_like(enter)])
        return final, broken
