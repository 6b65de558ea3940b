"""Climbs on a system that see beyond the current linear piece.

A unit that is dropped passes no gradient, although it could be kept elsewhere in the ball. Its slope is therefore blended with
the chord of its relaxation on the ball, the slope of the triangle above a ReLU unit. The blend fades during the climb, which
ends on exact gradients. On networks trained to hide nothing from gradients this finds images that restarts do not.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.certification.competitions import is_kept
from kwbench.certification.dual import Slopes, Units
from kwbench.certification.effort import Effort
from kwbench.certification.products import Matrix
from kwbench.certification.system import System

# `leaky`: dropped units pass half of their chord's slope. `blend`: so do all units, in place of half of their own. `smooth`:
# ReLU units are softplus functions. `exact`: gradients of the network itself.
Slope = Literal["leaky", "blend", "smooth", "exact"]
SLOPES: tuple[Slope, ...] = get_args(Slope)

# The share of a climb in which the blend fades.
_FADING = 0.7
# The first and the last step size in eps.
_FIRST_STEP, _LAST_STEP = 0.5, 0.002


class Climber:
    """Lowers margins of a system over images of an linf ball."""

    def __init__(self, system: System, effort: Effort | None = None) -> None:
        self.system = system
        self.effort = effort or Effort()
        self._levels = [
            (Matrix(level.matrix.T.float()), level.constant.float(), level.groups, *_shape_of(level_units))
            for level, level_units in ((level, Units.of(level)) for level in system.levels)
        ]
        self._margins = system.margins.matrix.T.float(), system.margins.constant.float()
        self._multiply_adds = sum(matrix.multiply_adds for matrix, *_ in self._levels)

    def affordable(self, climbs: int, steps: int) -> int:
        """Return how many of so many climbs the effort allows."""
        while climbs and not self.effort.allows(*self._cost(climbs, steps)):
            climbs //= 2
        return climbs

    def _cost(self, climbs: int, steps: int) -> tuple[float, int]:
        """Return the multiply-adds and calls of climbs: a forward and a backward pass a step."""
        return 2 * climbs * (steps + 1) * self._multiply_adds, 2 * (steps + 1)

    def margins(self, images: Tensor, slope: Slope = "exact", share: float = 0.0) -> Tensor:
        """Return the margins (b, r) of images (b, pixels); slopes differ from the exact ones by the share in [0, 1]."""
        state = images
        for matrix, constant, groups, chord, width in self._levels:
            value = matrix(state) + constant
            if slope == "smooth" and share > 0 and groups is None:
                scale = width * share + 1e-9
                output = F.softplus(value / scale) * scale
            else:
                kept = is_kept(value.detach(), groups)
                own = kept.float()
                if slope == "leaky":
                    own = torch.where(kept, own, 0.5 * share * chord)
                elif slope != "exact":
                    own = (1 - 0.5 * share) * own + 0.5 * share * chord
                output = _Selected.apply(value, kept, own)  # type: ignore[no-untyped-call]
            state = torch.cat([state, output], dim=1)
        return state @ self._margins[0] + self._margins[1]

    def climb(self, starts: Tensor, margin: Tensor, slope: Slope, steps: int) -> tuple[Tensor, Tensor]:
        """Lower the margin (b,) by row, from starts (b, pixels); return the best images and their margins (b,).

        Raises OutOfEffort.
        """
        self.effort.spend(*self._cost(len(starts), steps))
        ball = self.system.ball
        low, high = ball.low.float(), ball.high.float()
        images = starts.clone()
        best, least = images.clone(), torch.full((len(images),), torch.inf)
        for step in range(steps + 1):
            done = step / max(steps, 1)
            share = max(0.0, 1 - done / _FADING)
            leaf = images.requires_grad_(True)
            own = self.margins(leaf, slope, share).gather(1, margin[:, None]).squeeze(1)
            (gradient,) = torch.autograd.grad(own.sum(), leaf)
            with torch.no_grad():
                if slope == "smooth" and share > 0:
                    # Of the smoothed network, not of the network.
                    own = torch.full_like(own, torch.inf)
                better = own < least
                least = torch.where(better, own, least)
                best = torch.where(better[:, None], images, best)
                size = _LAST_STEP + _FIRST_STEP * (1 + math.cos(math.pi * done)) / 2
                images = (images - ball.radius * size * gradient.sign()).clamp(low, high)
        return best.detach(), least.detach()


def _shape_of(units: Units) -> tuple[Tensor, Tensor]:
    """Return the slope of the chord (n,) of each unit, and the width (n,) over which softplus rounds its edge."""
    chord = Slopes.initial(units.to(torch.float32), 1).falling[0]
    return chord, (torch.minimum(-units.low, units.high) / 4).clamp_min(0)[0].float()


class _Selected(torch.autograd.Function):
    """The values of kept units, with slopes of one's own choice."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, kept: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value * kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None
