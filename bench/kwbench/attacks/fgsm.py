"""The fast gradient method (Goodfellow et al. 2015, arXiv:1412.6572)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from kwbench.attacks.attack import strict
from kwbench.attacks.search.ascent import Descent
from kwbench.attacks.search.losses import LossName
from kwbench.gradients import EXACT, Gradient, passes
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Fgsm:
    """One step of length eps from the image itself along the steepest direction of the loss, cut to the pixel range.

    In linf the gradient's sign, as in the paper; in l2 its direction; in l1 the one pixel of largest slope.
    """

    __pydantic_config__: ClassVar[ConfigDict] = strict
    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    revision: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()
    minimum_norm: ClassVar[bool] = False
    whole_tiles: ClassVar[bool] = False

    loss: LossName = "cross_entropy"
    gradient: Gradient = EXACT

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        step = Descent(1, threat.radius, self.loss, self.gradient, early_exit=False)
        return step(model, x, y, threat, rng, start=x, rows=torch.arange(len(x), device=x.device))[0]

    def passes(self, stochastic: bool) -> int:
        """See Budgeted."""
        return passes(self.gradient)
