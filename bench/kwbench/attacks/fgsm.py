"""The fast gradient method (Goodfellow et al. 2015, arXiv:1412.6572)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.attacks.search.ascent import Ascent
from kwbench.attacks.search.losses import LossName
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Fgsm(Attack):
    """One step of length eps from the image along the steepest direction of the loss, clipped to the pixel range.

    The direction is the gradient's sign in linf, as in the paper; the normalized gradient in l2; the pixel of largest slope in
    l1.
    """

    norms = frozenset({"linf", "l2", "l1"})
    needs = "gradients"
    steps = 1

    loss: LossName = "cross_entropy"
    gradient: Gradient = EXACT

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        step = Ascent(1, threat.radius, self.loss, self.gradient, early_exit=False)
        return step(model, x, y, threat, rng, start=x, rows=torch.arange(len(x), device=x.device))[0]

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        return self.gradient.passes()
