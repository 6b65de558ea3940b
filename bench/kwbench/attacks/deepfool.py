"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kwbench.attacks.attack import Attack, JudgingRule
from kwbench.attacks.search.losses import fooled, other_logits
from kwbench.attacks.search.trials import on_device, read
from kwbench.geometry import norms, steepest
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import Norm, ThreatModel

# The number of classes of ImageNet; no supported data set has more.
_MOST_CLASSES = 1000

_DUAL: dict[str, Norm] = {"linf": "l1", "l2": "l2"}


@dataclass(frozen=True)
class DeepFool(Attack):
    """Repeated steps to the nearest decision boundary of the model's linear approximation, until the class changes.

    The defaults are Foolbox's and the authors' code's: at most 50 steps, the 10 most likely classes (`candidates`; None for
    all), the summed steps lengthened by `overshoot` 0.02, and 1e-4 added to each distance.
    `judged`: by the distance of the proposal (the paper, Foolbox 2), or clipped into the ball and predicted again (Foolbox 3).
    On a stochastic model a sample stays where it is while predictions are wrong, and moves on when a later one is right.
    """

    norms = frozenset({"linf", "l2"})
    needs = "gradients"
    minimum_norm = True

    steps: int = 50
    candidates: int | None = 10
    overshoot: float = 0.02
    gradient: Gradient = EXACT
    judged: JudgingRule = "distance"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")
        if self.candidates is not None and self.candidates < 2:
            raise ValueError("candidates must be at least 2: the true class and one other")
        if self.overshoot < 0:
            raise ValueError("overshoot must not be negative")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        final = x.clone()
        # The samples that are still searched for, on the CPU and on the device.
        samples, active = np.arange(len(x)), torch.arange(len(x), device=x.device)
        others = self._others(model, x, y)
        z, total = x.clone(), torch.zeros_like(x)
        for step in range(self.steps):
            if not model.stochastic:
                # One forward pass saves misclassified samples a gradient for every class. A GPU is waited for only here.
                with torch.no_grad():
                    (done,) = read(fooled(model(z, active), y[active]))
                if done.any():
                    final[active] = z
                    kept = on_device(np.flatnonzero(~done), x)
                    samples, active, z, total = samples[~done], active[kept], z[kept], total[kept]
                    if not len(samples):
                        return final
            labels, rivals = y[active], others[active]

            def leads(logits: Tensor, labels: Tensor = labels, rivals: Tensor = rivals) -> Tensor:
                return (logits.gather(1, rivals) - logits.gather(1, labels[:, None])).T

            estimate = self.gradient(model, z, leads, rng.take(samples.tolist()).child(step), active)
            move = _to_nearest_boundary(estimate.values, estimate.gradients, threat.norm)
            if model.stochastic:
                move = move * ~fooled(estimate.logits, labels).view(-1, 1, 1, 1)
            total = total + move
            z = (x[active] + (1 + self.overshoot) * total).clamp(0, 1)
        final[active] = z
        return final

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        rivals = (self.candidates or _MOST_CLASSES) - 1
        return 1 + self.steps * (1 + self.gradient.passes(rivals))

    def _others(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Return the classes (b, m) whose boundaries are considered: all but the true one, or the likeliest of them."""
        if self.candidates is None or self.candidates >= model.classes:
            return torch.stack([torch.cat([torch.arange(k), torch.arange(k + 1, model.classes)]) for k in y.tolist()]).to(
                x.device
            )
        with torch.no_grad():
            logits = other_logits(model(x, torch.arange(len(x), device=x.device)), y)
        return logits.argsort(dim=1, descending=True, stable=True)[:, : self.candidates - 1]


def _to_nearest_boundary(values: Tensor, gradients: Tensor, norm: Norm) -> Tensor:
    """Return the shortest step (b, c, h, w) to one of m boundaries, at which value (m, b) + gradient (m, b, c, h, w) * step =
    0."""
    slopes = torch.stack([norms(gradient, _DUAL[norm]) for gradient in gradients])
    distances = values.abs() / slopes.clamp_min(1e-30)
    nearest = distances.argmin(dim=0)
    rows = torch.arange(len(nearest), device=nearest.device)
    length = distances[nearest, rows] + 1e-4
    # A constant model has no boundary.
    length = torch.where(slopes[nearest, rows] > 0, length, 0)
    return steepest(gradients[nearest, rows], norm) * length.view(-1, 1, 1, 1)
