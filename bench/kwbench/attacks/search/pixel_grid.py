"""Grids of pixel values, such as k / 255 of 8-bit images: which one images lie on, and whether answers change there."""

import torch
from torch import Tensor

from kwbench.model import Model
from kwbench.threat import ThreatModel

# Numbers of steps between black and white that sensors and formats use.
_LEVELS = (15, 16, 31, 32, 63, 64, 127, 128, 255, 256)
_SENSOR = 255
# How near to the grid a value lies on it, in steps, and how far off the grid images are moved to see whether answers change.
_ON_GRID, _OFF_GRID = 1e-3, 0.02
# Change of the logits, relative to the largest one, from which on answers change.
_CHANGE = 0.05


def levels_of(x: Tensor) -> tuple[int, ...]:
    """Return the grids to search, by their number of levels: the coarsest that images x lie on, and that of 8-bit images."""
    own = next((levels for levels in _LEVELS if bool((_from_grid(x, levels) < _ON_GRID).all())), _SENSOR)
    return tuple(dict.fromkeys((own, _SENSOR)))


def on_grid(z: Tensor, x: Tensor, threat: ThreatModel, levels: int) -> Tensor:
    """Return z (b, c, h, w) with pixels rounded to k / levels, inside the ball around x where the grid has such a value.

    Elsewhere pixels of x stay, and in other norms than linf also those that do not lie on the grid.
    """
    if threat.norm != "linf":
        nearest, steps = (x * levels).round(), ((z - x) * levels).trunc()
        return torch.where(_from_grid(x, levels) < _ON_GRID, ((nearest + steps) / levels).clamp(0, 1), x)
    slack = 1e-6 * levels
    low = ((x - threat.radius) * levels - slack).ceil().clamp_min(0)
    high = ((x + threat.radius) * levels + slack).floor().clamp_max(levels)
    rounded = torch.minimum(torch.maximum((z * levels).round(), low), high) / levels
    return torch.where(low <= high, rounded, x)


def grids_that_matter(model: Model, x: Tensor, threat: ThreatModel) -> tuple[int, ...]:
    """Return the grids on which the model answers otherwise than beside them, for images x (n, c, h, w)."""
    generator = torch.Generator().manual_seed(0)
    noise = (2 * torch.rand(x.shape, generator=generator) - 1).to(x)
    chosen = []
    with model.aside("grids"), model.raising_by_name(), torch.no_grad():
        for levels in levels_of(x):
            at = on_grid(x + threat.radius * noise, x, threat, levels)
            beside = (at + _OFF_GRID / levels * noise.sign()).clamp(0, 1)
            logits = model(at)
            change = (model(beside) - logits).abs().amax(dim=1) / logits.abs().amax(dim=1).clamp_min(1e-30)
            if bool((change > _CHANGE).any()):
                chosen.append(levels)
    return tuple(chosen)


def _from_grid(x: Tensor, levels: int) -> Tensor:
    """Return the distances of pixels from the grid, in steps."""
    return (x * levels - (x * levels).round()).abs()
