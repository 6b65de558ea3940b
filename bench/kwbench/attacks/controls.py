"""Controls: random changes and none. They must hardly lower the accuracy in a sound evaluation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.attacks.search.losses import fooled, margin
from kwbench.geometry import project
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

_ALL_NORMS = frozenset({"linf", "l2", "l1"})


@dataclass(frozen=True)
class NoOp(Attack):
    """Return the images unchanged."""

    norms = _ALL_NORMS
    needs = "nothing"

    @property
    def evidence_group(self) -> None:
        """See Attack; there is no search."""
        return

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Return a copy of x (b, c, h, w)."""
        return x.clone()

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        return 0


@dataclass(frozen=True)
class RandomSign(Attack):
    """A random corner of the cube inside the ball: every pixel moves by the same amount, up or down."""

    norms = _ALL_NORMS
    needs = "nothing"

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) without using the model or y."""
        signs = torch.where(rng.uniform("signs", x.shape[1:]) < 0.5, -1.0, 1.0).to(x.device)
        return project(x + signs * threat.radius / _length_of_ones(x, threat), x, threat)

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        return 0


@dataclass(frozen=True)
class GaussianNoise(Attack):
    """Gaussian noise projected into the ball; the worst of `steps` draws.

    A pixel's standard deviation is eps / 2 in linf, eps / (2 sqrt(d)) in l2 and eps / (2 d) in l1, for d pixels. On a
    stochastic model there is one draw: choosing among several by single predictions would select the model's luck.
    """

    norms = _ALL_NORMS
    needs = "scores"

    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        deviation = threat.radius / (2 * _length_of_ones(x, threat))
        if model.stochastic:
            return project(x + deviation * rng.normal(0, x.shape[1:]).to(x.device), x, threat)
        best, highest = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            for step in range(self.steps):
                noise = rng.take(rows).normal(step, x.shape[1:]).to(x.device)
                z = project(x[rows] + deviation * noise, x[rows], threat)
                logits = model(z, rows)
                broken, value = fooled(logits, y[rows]), margin(logits, y[rows])
                better = broken | (value > highest[rows])
                best[rows[better]], highest[rows[better]] = z[better], value[better]
                rows = rows[~broken]
                if not len(rows):
                    break
        return best

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        return 0 if stochastic else self.steps


def _length_of_ones(x: Tensor, threat: ThreatModel) -> float:
    """Return the norm of an image of ones."""
    pixels = x[0].numel()
    return {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[threat.norm]
