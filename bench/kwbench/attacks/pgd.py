"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083)."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from kwbench.attacks.attack import Length, ModelFacts, PrecisionOrAuto, RestartedAttack
from kwbench.attacks.search.ascent import Ascent
from kwbench.attacks.search.losses import LOSSES, LossName, fooled
from kwbench.geometry import random_start
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# The default length of all steps together, in eps: enough to cross the ball, two eps wide, and to come back.
CROSSING = 2.5


@dataclass(frozen=True)
class Pgd(RestartedAttack):
    """Steps along the steepest direction of the loss, each followed by projection into the ball and the pixel range.

    `step_size` is in the norm's unit; None stands for `relative_step_size` * eps, and that for 2.5 * eps / `steps`, with which
    the steps cross the ball from any start (Madry et al., who take 100 steps of it in figure 6 of the source). By default 40
    steps from a random start. Foolbox's LinfPGD is `relative_step_size: 0.03333333`: 40 steps of eps / 30, which cannot cross
    the ball.

    Deterministic models: a sample stops at its first misclassified iterate (`early_exit`), which also keeps a success that a
    later step would lose; papers report the last iterate. The first restart that succeeds is proposed. With `precision`
    folded, tf32 or bfloat16 gradients are computed faster, and a sample stops when float32 confirms that it is misclassified.
    `auto` is that of Auto-PGD.
    Stochastic models: all steps are taken, and the restart with the highest mean loss over `restart_draws` draws is proposed.
    """

    norms = frozenset({"linf", "l2", "l1"})
    needs = "gradients"
    revision = 2

    steps: int = 40
    step_size: Length | None = None
    relative_step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "cross_entropy"
    gradient: Gradient = EXACT
    early_exit: bool = True
    restart_draws: int = 20
    precision: PrecisionOrAuto = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.restart_draws < 1:
            raise ValueError("steps, restarts and restart_draws must be at least 1")
        if any(size is not None and size <= 0 for size in (self.step_size, self.relative_step_size)):
            raise ValueError("step_size and relative_step_size must be positive")
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without a random start all take the same path")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        climb = self._ascent(threat.radius)
        best = x.clone()
        best_loss = torch.full((len(x),), -torch.inf, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            stream = rng.child(f"restart {restart}").take(rows)
            start = random_start(x[rows], threat, stream) if self.random_start else x[rows].clone()
            z, broken = climb(model, x[rows], y[rows], threat, stream, start=start, rows=rows)
            if self.restarts == 1:
                return z
            if model.stochastic:
                loss = self._mean_loss(model, z, y, rows)
                better = loss > best_loss
                best[better], best_loss[better] = z[better], loss[better]
                continue
            with torch.no_grad():
                broken[~broken] = fooled(model(z[~broken], rows[~broken]), y[rows[~broken]])
            best[rows] = z
            rows = rows[~broken]
            if not len(rows):
                break
        return best

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        choosing = 0 if self.restarts == 1 else self.restart_draws if stochastic else 1
        return self.restarts * (self._ascent(1.0).passes(stochastic) + choosing)

    def resolved(self, facts: ModelFacts) -> Self:
        """See Attack; the record states the step size."""
        attack = super().resolved(facts)
        return attack if self.step_size is not None else replace(attack, relative_step_size=self._relative_step_size)

    @property
    def _relative_step_size(self) -> float:
        return self.relative_step_size if self.relative_step_size is not None else CROSSING / self.steps

    def _ascent(self, radius: float) -> Ascent:
        step_size = self.step_size if self.step_size is not None else self._relative_step_size * radius
        return Ascent(self.steps, step_size, self.loss, self.gradient, self.early_exit, precision=self.search_precision)

    def _mean_loss(self, model: Model, z: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            losses = [LOSSES[self.loss](model(z, rows), y) for _ in range(self.restart_draws)]
        # A NaN loss comes from a prediction that the judge calls broken.
        return torch.stack(losses).nan_to_num(nan=torch.inf).mean(dim=0)
