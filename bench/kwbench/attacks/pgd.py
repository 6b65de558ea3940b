"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from kwbench.attacks.attack import strict
from kwbench.attacks.losses import LOSSES
from kwbench.geometry import project, random_start, steepest
from kwbench.gradients import Exact, Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Pgd:
    """Steps along the steepest direction of the loss, each followed by projection into the ball and the pixel range.

    `step_size` is in the norm's unit; None stands for `relative_step_size` * eps. The defaults are Foolbox's LinfPGD:
    40 steps of eps / 30 from a random start.
    On a deterministic model a sample stops at its first misclassified iterate (`early_exit`), which also keeps a success
    that a later step would lose; papers report the last iterate. A stochastic model is attacked to the last step, and among
    restarts the one with the highest mean loss over `restart_draws` draws is proposed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = strict
    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimum_norm: ClassVar[bool] = False
    whole_tiles: ClassVar[bool] = False

    steps: int = 40
    step_size: float | None = None
    relative_step_size: float = 1 / 30
    restarts: int = 1
    random_start: bool = True
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    gradient: Gradient = Exact()
    early_exit: bool = True
    restart_draws: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.restart_draws < 1:
            raise ValueError("steps, restarts and restart_draws must be at least 1")
        if (self.step_size if self.step_size is not None else self.relative_step_size) <= 0:
            raise ValueError("step_size and relative_step_size must be positive")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        best = x.clone()
        best_loss = torch.full((len(x),), -torch.inf, device=x.device)
        open_rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            stream = rng.child(f"restart {restart}").take(open_rows)
            z, broken = self._descend(model, x[open_rows], y[open_rows], threat, stream, open_rows)
            if model.stochastic:
                loss = self._mean_loss(model, z, y[open_rows], open_rows) if self.restarts > 1 else torch.zeros(len(z))
                better = loss.to(x.device) > best_loss[open_rows]
                best[open_rows[better]], best_loss[open_rows[better]] = z[better], loss.to(x.device)[better]
                continue
            best[open_rows] = z
            open_rows = open_rows[~broken]
            if not len(open_rows):
                break
        return best

    def _descend(
        self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The proposals, and which of them were seen misclassified (deterministic models with early exit only)."""
        step_size = self.step_size if self.step_size is not None else self.relative_step_size * threat.radius
        early_exit = self.early_exit and not model.stochastic
        loss = LOSSES[self.loss]
        start = random_start(x, threat, rng) if self.random_start else x.clone()
        final, broken = start.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        active = torch.arange(len(x), device=x.device)
        z = start
        for step in range(self.steps):
            labels = y[active]
            estimate = self.gradient(
                model, z, lambda logits, labels=labels: loss(logits, labels)[None], rng.take(active).child(step), rows[active]
            )
            if early_exit:
                fooled = estimate.logits.argmax(dim=1) != labels
                final[active[fooled]], broken[active[fooled]] = z[fooled], True
                active, z, gradient = active[~fooled], z[~fooled], estimate.gradients[0][~fooled]
                if not len(active):
                    return final, broken
            else:
                gradient = estimate.gradients[0]
            z = project(z + step_size * steepest(gradient, threat.norm), x[active], threat)
        final[active] = z
        if early_exit and self.restarts > 1:
            broken[active] = model.predict(z)[0] != y[active]
        return final, broken

    def _mean_loss(self, model: Model, z: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([LOSSES[self.loss](model(z, rows), y) for _ in range(self.restart_draws)]).mean(dim=0)
