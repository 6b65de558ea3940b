"""The momentum iterative method (Dong et al. 2018, arXiv:1710.06081)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack, Length, PrecisionOrAuto
from kwbench.attacks.search.ascent import Ascent
from kwbench.attacks.search.losses import LossName
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Mim(Attack):
    """Steps along the steepest direction of a decaying sum of gradients, each divided by its l1 norm; no random start.

    The defaults are the paper's: 10 steps of eps / 10, decay 1.0. `step_size` is in the norm's unit; None stands for
    `relative_step_size` * eps, and that for eps / `steps`. The norms are those of the paper (eq. 6 to 8).
    On a deterministic model a sample stops at its first misclassified iterate (`early_exit`); papers report the last. With
    `precision` folded, tf32 or bfloat16 gradients are computed faster, and a sample stops when float32 confirms that it is
    misclassified. `auto` is that of Auto-PGD.
    """

    norms = frozenset({"linf", "l2"})
    needs = "gradients"

    steps: int = 10
    step_size: Length | None = None
    relative_step_size: float | None = None
    decay: float = 1.0
    loss: LossName = "cross_entropy"
    gradient: Gradient = EXACT
    early_exit: bool = True
    precision: PrecisionOrAuto = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")
        if any(size is not None and size <= 0 for size in (self.step_size, self.relative_step_size)):
            raise ValueError("step_size and relative_step_size must be positive")
        if self.decay < 0:
            raise ValueError("decay must not be negative")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        climb = self._ascent(threat.radius)
        return climb(model, x, y, threat, rng, start=x, rows=torch.arange(len(x), device=x.device))[0]

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        return self._ascent(1.0).passes(stochastic)

    def _ascent(self, radius: float) -> Ascent:
        relative = self.relative_step_size if self.relative_step_size is not None else 1 / self.steps
        step_size = self.step_size if self.step_size is not None else relative * radius
        return Ascent(self.steps, step_size, self.loss, self.gradient, self.early_exit, self.decay, self.search_precision)
