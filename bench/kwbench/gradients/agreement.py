"""How far two gradient estimates agree, by which `draws: auto` decides when to stop."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Draws = int | Literal["auto"]

# The number of draws at which `auto` stops, and the cosine of two independent means that is high enough to stop before.
MOST_DRAWS, ENOUGH_AGREEMENT = 64, 0.3


def most_draws(draws: Draws) -> int:
    """Return the largest number of draws that `draws` allows."""
    return MOST_DRAWS if draws == "auto" else draws


def cosines_of(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosines (m, b) of gradients (m, b, c, h, w); NaN if one of the two is zero or not finite."""
    cosines = (_unit(first) * _unit(second)).sum(dim=2)
    return cosines.where(cosines.isfinite() & (cosines != 0), torch.nan)


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """Return the mean cosine of gradients (m, b, c, h, w); 1 if none is defined, because more draws would not help."""
    cosines = cosines_of(first, second)
    defined = ~cosines.isnan()
    return cosines[defined].mean().item() if bool(defined.any()) else 1.0


def _unit(gradients: Tensor) -> Tensor:
    """Scale gradients (m, b, ...) to length 1, as (m, b, n). Their squares could underflow, so divide by the maximum first."""
    flat = gradients.flatten(2)
    return F.normalize(flat / flat.abs().amax(dim=2, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny), dim=2)
