"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.attack import Length, RestartedAttack
from kwbench.attacks.search.ascent import Ascent
from kwbench.attacks.search.losses import LOSSES, LossName, fooled
from kwbench.geometry import random_start
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Pgd(RestartedAttack):
    """Steps along the steepest direction of the loss, each followed by projection into the ball and the pixel range.

    `step_size` is in the norm's unit; None stands for `relative_step_size` * eps. The defaults are Foolbox's LinfPGD:
    40 steps of eps / 30 from a random start.

    Deterministic models: a sample stops at its first misclassified iterate (`early_exit`), which also keeps a success that a
    later step would lose; papers report the last iterate. The first restart that succeeds is proposed. With `precision` folded
    or bfloat16 gradients are computed faster, and a sample stops when float32 confirms that it is misclassified.
    Stochastic models: all steps are taken, and the restart with the highest mean loss over `restart_draws` draws is proposed.
    """

    norms = frozenset({"linf", "l2", "l1"})
    needs = "gradients"

    steps: int = 40
    step_size: Length | None = None
    relative_step_size: float = 1 / 30
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "cross_entropy"
    gradient: Gradient = EXACT
    early_exit: bool = True
    restart_draws: int = 20
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.restart_draws < 1:
            raise ValueError("steps, restarts and restart_draws must be at least 1")
        if (self.step_size if self.step_size is not None else self.relative_step_size) <= 0:
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

    def _ascent(self, radius: float) -> Ascent:
        step_size = self.step_size if self.step_size is not None else self.relative_step_size * radius
        return Ascent(self.steps, step_size, self.loss, self.gradient, self.early_exit, precision=self.precision)

    def _mean_loss(self, model: Model, z: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            losses = [LOSSES[self.loss](model(z, rows), y) for _ in range(self.restart_draws)]
        # A NaN loss comes from a prediction that the judge calls broken.
        return torch.stack(losses).nan_to_num(nan=torch.inf).mean(dim=0)
