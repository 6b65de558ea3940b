"""The loop that FGSM, PGD, MIM and transfer attacks share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.search.lookahead import looks, margin_ahead, margin_here, to_look_at
from kwbench.attacks.search.losses import LOSSES, LossName, not_finite
from kwbench.attacks.search.trials import misclassified
from kwbench.geometry import norms, project, steepest, total
from kwbench.gradients import Gradient
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class Ascent:
    """Steps along the steepest direction of a loss, each followed by projection into the ball and the pixel range.

    `step_size` is in the norm's unit. With `decay` the direction is that of a running sum, old sum times `decay` plus the
    gradient over its l1 norm (Dong et al. 2018, arXiv:1710.06081, eq. 6). In another `precision` than float32 no sample stops
    before float32 agrees that it is misclassified.
    """

    steps: int
    step_size: float
    loss: LossName
    gradient: Gradient
    early_exit: bool
    decay: float | None = None
    precision: Precision = "float32"

    def passes(self, stochastic: bool) -> int:
        """The largest number of forwards and backwards that it may spend on a sample of such a model."""
        looking = looks(self.steps - 1) if self._looks(stochastic) else 0
        confirming = self.steps + looking if self.precision != "float32" else 0
        return self.steps * self.gradient.passes() + looking + confirming

    def _looks(self, stochastic: bool) -> bool:
        # Other estimators' samples go together, in step.
        return self.early_exit and not stochastic and not self.gradient.in_step

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
        z, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        loss = LOSSES[self.loss]
        # As many samples as one pass takes at a time, and whoever is done makes room for the next. Estimators that draw noise
        # address it by the step, so theirs go all together.
        together = model.stochastic or self.gradient.in_step
        with model.computing_in(self.precision):
            room = len(x) if together else model.batch_sizes(gradients=True)[0]
        looking = self._looks(model.stochastic)
        velocity = torch.zeros_like(x) if self.decay is not None else x[:0]
        taken = torch.zeros(len(x), dtype=torch.long, device=x.device)
        margins = torch.full((len(x),), -torch.inf, device=x.device)
        ready, likely = torch.arange(len(x), device=x.device), taken[:0]
        while len(ready) or len(likely):
            if len(likely) and (len(ready) < room or len(likely) >= room):
                some, likely = likely[:room], likely[room:]
                at, labels, payers = z[some], y[some], rows[some]
                with torch.no_grad(), model.computing_in(self.precision):
                    logits = model(at, payers)
                broken[some] = misclassified(model, at, logits, labels, payers, self.precision)
                ready = torch.cat([ready, some[~broken[some]]])
                continue
            some, ready = ready[:room], ready[room:]
            at, labels, payers = z[some], y[some], rows[some]

            def objective(logits: Tensor, labels: Tensor = labels) -> Tensor:
                return loss(logits, labels)[None]

            stream = rng.take(some).child(int(taken[some[0]])) if together else rng
            with model.computing_in(self.precision):
                estimate = self.gradient(model, at, objective, stream, payers)
            gradient = estimate.gradients[0]
            if early_exit:
                settled = broken[some] = misclassified(model, at, estimate.logits, labels, payers, self.precision)
            else:
                # Not-a-number is what the judge calls broken; its gradient would lead out of the pixels.
                settled = not_finite(estimate.logits)
            if self.decay is not None:
                length = norms(gradient, "l1").clamp_min(1e-30).view(-1, 1, 1, 1)
                gradient = velocity[some] = self.decay * velocity[some] + gradient / length
            moved = project(at + self.step_size * steepest(gradient, threat.norm), x[some], threat)
            z[some] = torch.where(settled.view(-1, 1, 1, 1), at, moved) if bool(settled.any()) else moved
            steps = taken[some] = taken[some] + 1
            on = steps < self.steps
            if early_exit:
                on &= ~settled
            if looking and int(steps.min()) <= looks(self.steps):
                before, here = margins[some], margin_here(estimate.logits, labels)
                margins[some] = here
                rise = total(estimate.gradients[0] * (moved - at))
                look = to_look_at(steps, margin_ahead(here, before, self.loss, estimate.values[0], rise))
                likely = torch.cat([likely, some[on & look]])
                on &= ~look
            ready = torch.cat([ready, some[on]])
        return z, broken
