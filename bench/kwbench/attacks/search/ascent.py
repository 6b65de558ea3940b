"""The search that FGSM, PGD, MIM and transfer attacks share: steps along the steepest direction of a loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.search.lookahead import current_margin, expected_margin, most_lookaheads, should_look_ahead
from kwbench.attacks.search.losses import LOSSES, LossName, no_answer
from kwbench.attacks.search.trials import misclassified
from kwbench.geometry import norms, project, steepest, total
from kwbench.gradients import Gradient
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class Ascent:
    """Steps along the steepest direction of a loss, each followed by projection into the ball and the pixel range.

    `step_size` is in the norm's unit. With `decay` the direction is that of a running sum: the old sum times `decay`, plus the
    gradient over its l1 norm (Dong et al. 2018, arXiv:1710.06081, eq. 6). If `precision` is not float32, no sample stops before
    float32 confirms that it is misclassified.
    """

    steps: int
    step_size: float
    loss: LossName
    gradient: Gradient
    early_exit: bool
    decay: float | None = None
    precision: Precision = "float32"

    def passes(self, stochastic: bool) -> int:
        """Return the largest number of forward and backward passes that it may spend on a sample of such a model."""
        lookaheads = most_lookaheads(self.steps - 1) if self._looks_ahead(stochastic) else 0
        confirming = self.steps + lookaheads if self.precision != "float32" else 0
        return self.steps * self.gradient.passes() + lookaheads + confirming

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
        """Return images near x (b, c, h, w), climbing from `start`, and which of them were seen misclassified, as (b,).

        Successes are looked for only with `early_exit`, and never at the last iterate, because the judge does that. `rows`
        (b,): the positions of the samples in the metered batch.
        """
        return _AscentRun(self, model, x, y, threat, rng, start, rows)()

    def _looks_ahead(self, stochastic: bool) -> bool:
        return self.early_exit and not stochastic and not self.gradient.in_step


class _AscentRun:
    """The ascent of one batch, scheduled so that passes are full: a sample that is done makes room for the next.

    `_ready` and `_likely` are queues of positions in the batch: samples whose gradient comes next, and samples that get a
    lookahead first because they are likely to be misclassified.
    """

    def __init__(
        self,
        ascent: Ascent,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        rng: SampleRandom,
        start: Tensor,
        rows: Tensor,
    ) -> None:
        self._ascent, self._model, self._threat, self._rng = ascent, model, threat, rng
        self._x, self._y, self._rows = x, y, rows
        self._early_exit = ascent.early_exit and not model.stochastic
        self._lookahead = ascent._looks_ahead(model.stochastic)
        self._in_step = model.stochastic or ascent.gradient.in_step
        with model.computing_in(ascent.precision):
            self._batch_size = len(x) if self._in_step else model.batch_sizes(gradients=True)[0]
        self._z, self._broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._velocity = torch.zeros_like(x) if ascent.decay is not None else x[:0]
        self._steps_taken = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._margins = torch.full((len(x),), -torch.inf, device=x.device)
        self._ready, self._likely = torch.arange(len(x), device=x.device), self._steps_taken[:0]

    def __call__(self) -> tuple[Tensor, Tensor]:
        """See Ascent."""
        size = self._batch_size
        while len(self._ready) or len(self._likely):
            if len(self._likely) and (len(self._ready) < size or len(self._likely) >= size):
                chosen, self._likely = self._likely[:size], self._likely[size:]
                self._look_ahead(chosen)
            else:
                chosen, self._ready = self._ready[:size], self._ready[size:]
                self._step(chosen)
        return self._z, self._broken

    def _look_ahead(self, chosen: Tensor) -> None:
        """Ask for predictions of some samples (r,); those that are not misclassified become ready."""
        z, labels, rows = self._z[chosen], self._y[chosen], self._rows[chosen]
        with torch.no_grad(), self._model.computing_in(self._ascent.precision):
            logits = self._model(z, rows)
        self._broken[chosen] = misclassified(self._model, z, logits, labels, rows, self._ascent.precision)
        self._ready = torch.cat([self._ready, chosen[~self._broken[chosen]]])

    def _step(self, chosen: Tensor) -> None:
        """Take a step with some samples (r,) and put those that go on into the queues."""
        ascent, model = self._ascent, self._model
        z, labels, rows = self._z[chosen], self._y[chosen], self._rows[chosen]

        def objective(logits: Tensor) -> Tensor:
            return LOSSES[ascent.loss](logits, labels)[None]

        stream = self._rng.take(chosen).child(int(self._steps_taken[chosen[0]])) if self._in_step else self._rng
        with model.computing_in(ascent.precision):
            estimate = ascent.gradient(model, z, objective, stream, rows)
        gradient = estimate.gradients[0]
        if self._early_exit:
            settled = misclassified(model, z, estimate.logits, labels, rows, ascent.precision)
            self._broken[chosen] = settled
        else:
            # The judge calls a prediction that is not finite broken; its gradient would lead out of the pixel range.
            settled = no_answer(estimate.logits)
        if ascent.decay is not None:
            length = norms(gradient, "l1").clamp_min(1e-30).view(-1, 1, 1, 1)
            gradient = ascent.decay * self._velocity[chosen] + gradient / length
            self._velocity[chosen] = gradient
        moved = project(z + ascent.step_size * steepest(gradient, self._threat.norm), self._x[chosen], self._threat)
        self._z[chosen] = torch.where(settled.view(-1, 1, 1, 1), z, moved) if bool(settled.any()) else moved
        steps_taken = self._steps_taken[chosen] + 1
        self._steps_taken[chosen] = steps_taken
        unfinished = steps_taken < ascent.steps
        if self._early_exit:
            unfinished &= ~settled
        if self._lookahead and int(steps_taken.min()) <= most_lookaheads(ascent.steps):
            before, current = self._margins[chosen], current_margin(estimate.logits, labels)
            self._margins[chosen] = current
            rise = total(estimate.gradients[0] * (moved - z))
            expected = expected_margin(current, before, ascent.loss, estimate.values[0], rise)
            likely = should_look_ahead(steps_taken, expected)
            self._likely = torch.cat([self._likely, chosen[unfinished & likely]])
            unfinished &= ~likely
        self._ready = torch.cat([self._ready, chosen[unfinished]])
