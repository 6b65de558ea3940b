"""The search that FGSM, PGD, MIM and transfer attacks share: steps along the steepest direction of a loss."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kwbench.attacks.search.lookahead import current_margin, expected_margin, most_lookaheads, should_look_ahead
from kwbench.attacks.search.losses import LOSSES, LossName, fooled, no_answer
from kwbench.attacks.search.trials import Mask, Positions, on_device, read
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

    Three queues hold positions in the batch: `ready` the samples whose gradient comes next, `likely` those that get a lookahead
    first because they are likely to be misclassified, and `suspected` those that a search in lower precision calls
    misclassified, about which float32 is asked. Queues lie on the CPU. Each pass is read once, to know where its samples go.
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
        self._confirms = self._early_exit and model.effective_precision(ascent.precision) != "float32"
        with model.computing_in(ascent.precision):
            self._batch_size = len(x) if self._in_step else model.batch_sizes(gradients=True)[0]
        self._z, self._broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        # Where suspected samples go on if float32 does not confirm them.
        self._otherwise = torch.zeros_like(x) if self._confirms else x[:0]
        self._velocity = torch.zeros_like(x) if ascent.decay is not None else x[:0]
        self._margins = torch.full((len(x),), -torch.inf, device=x.device)
        self._steps_taken, self._is_likely = np.zeros(len(x), dtype=np.int64), np.zeros(len(x), dtype=np.bool_)
        self._ready, self._likely, self._suspected = np.arange(len(x)), np.arange(0), np.arange(0)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """See Ascent."""
        size = self._batch_size
        while len(self._ready) or len(self._likely) or len(self._suspected):
            wait = not self._in_step and (len(self._ready) >= size or len(self._likely) >= size)
            if len(self._suspected) and (len(self._suspected) >= size or not wait):
                chosen, self._suspected = self._suspected[:size], self._suspected[size:]
                self._confirm(chosen)
            elif len(self._likely) and (len(self._ready) < size or len(self._likely) >= size):
                chosen, self._likely = self._likely[:size], self._likely[size:]
                self._look_ahead(chosen)
            else:
                chosen, self._ready = self._ready[:size], self._ready[size:]
                self._step(chosen)
        return self._z, self._broken

    def _confirm(self, chosen: Positions) -> None:
        """Ask float32 about suspected samples (r,); those that are not misclassified go on."""
        at = on_device(chosen, self._z)
        z = self._z[at]
        with torch.no_grad():
            broken = fooled(self._model(z, self._rows[at]), self._y[at])
        self._broken[at] = broken
        self._z[at] = torch.where(broken.view(-1, 1, 1, 1), z, self._otherwise[at])
        self._go_on(chosen[~read(broken)[0]])
        if self._in_step:
            self._ready = np.sort(self._ready)

    def _look_ahead(self, chosen: Positions) -> None:
        """Ask for predictions of some samples (r,); those that are not misclassified become ready."""
        at = on_device(chosen, self._z)
        with torch.no_grad(), self._model.computing_in(self._ascent.precision):
            logits = self._model(self._z[at], self._rows[at])
        broken = fooled(logits, self._y[at])
        if self._confirms:
            self._otherwise[at] = self._z[at]
        else:
            self._broken[at] = broken
        self._is_likely[chosen] = False
        self._sort_out(chosen, read(broken)[0])

    def _step(self, chosen: Positions) -> None:
        """Take a step with some samples (r,) and put those that go on into the queues."""
        ascent, model, at = self._ascent, self._model, on_device(chosen, self._z)
        z, labels, rows = self._z[at], self._y[at], self._rows[at]

        def objective(logits: Tensor) -> Tensor:
            return LOSSES[ascent.loss](logits, labels)[None]

        stream = self._rng.take(chosen.tolist()).child(int(self._steps_taken[chosen[0]])) if self._in_step else self._rng
        with model.computing_in(ascent.precision):
            estimate = ascent.gradient(model, z, objective, stream, rows)
        gradient = estimate.gradients[0]
        # The judge calls a prediction that is not finite broken; its gradient would lead out of the pixel range.
        settled = fooled(estimate.logits, labels) if self._early_exit else no_answer(estimate.logits)
        if ascent.decay is not None:
            length = norms(gradient, "l1").clamp_min(1e-30).view(-1, 1, 1, 1)
            gradient = ascent.decay * self._velocity[at] + gradient / length
            self._velocity[at] = gradient
        moved = project(z + ascent.step_size * steepest(gradient, self._threat.norm), self._x[at], self._threat)
        self._z[at] = torch.where(settled.view(-1, 1, 1, 1), z, moved)
        self._steps_taken[chosen] += 1
        if not self._early_exit:
            self._go_on(chosen)
            return
        if self._confirms:
            self._otherwise[at] = moved
        else:
            self._broken[at] = settled
        steps_taken = self._steps_taken[chosen]
        if not self._lookahead or int(steps_taken.min()) > most_lookaheads(ascent.steps):
            self._is_likely[chosen] = False
            self._sort_out(chosen, read(settled)[0])
            return
        before, current = self._margins[at], current_margin(estimate.logits, labels)
        self._margins[at] = current
        rise = total(estimate.gradients[0] * (moved - z))
        expected = expected_margin(current, before, ascent.loss, estimate.values[0], rise)
        is_settled, is_likely = read(settled, should_look_ahead(expected))
        self._is_likely[chosen] = is_likely & (steps_taken <= most_lookaheads(ascent.steps))
        self._sort_out(chosen, is_settled)

    def _sort_out(self, chosen: Positions, settled: Mask) -> None:
        """Let samples (r,) go on, but for those that the search calls misclassified."""
        self._go_on(chosen[~settled])
        if self._confirms:
            self._suspected = np.concatenate([self._suspected, chosen[settled]])

    def _go_on(self, chosen: Positions) -> None:
        """Put samples (r,) that have steps left into a queue."""
        chosen = chosen[self._steps_taken[chosen] < self._ascent.steps]
        likely = self._is_likely[chosen]
        self._likely = np.concatenate([self._likely, chosen[likely]])
        self._ready = np.concatenate([self._ready, chosen[~likely]])
