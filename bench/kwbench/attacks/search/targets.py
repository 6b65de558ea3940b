"""The classes that a targeted search climbs for."""

import torch
from torch import Tensor

from kwbench.attacks.search.losses import other_logits
from kwbench.geometry import norms
from kwbench.gradients import Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import Norm

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2"}


def candidates(count: int) -> int:
    """Return how many of the likeliest classes are ranked to choose `count` targets; MALT ranks 100 to choose 9."""
    return max(9, 4 * count)


def nearest_classes(
    model: Model, x: Tensor, y: Tensor, norm: Norm, gradient: Gradient, count: int, rng: SampleRandom
) -> Tensor:
    """Return up to `count` target classes (b, m) for x (b, c, h, w) with labels y (b,), the most promising first.

    Classes are ranked by a linear estimate of their distance: logit gap over the dual norm of its gradient (MALT,
    arXiv:2407.02240), or by logit where gradients are zero. If a deterministic model has no more than `count` other classes,
    they are all returned in the order of their numbers without asking the model, because the climbs for them run in parallel.
    """
    rows = torch.arange(len(x), device=x.device)
    if not model.stochastic and count >= model.classes - 1:
        classes = torch.arange(model.classes, device=x.device).expand(len(x), -1)
        return classes[classes != y[:, None]].view(len(x), -1)
    with torch.no_grad():
        others = other_logits(model(x, rows), y)
    likely = others.argsort(dim=1, descending=True, stable=True)[:, : min(candidates(count), model.classes - 1)]

    def gaps(logits: Tensor) -> Tensor:
        return (logits.gather(1, likely) - logits.gather(1, y[:, None])).T

    estimate = gradient(model, x, gaps, rng.child("targets"), rows)
    slopes = torch.stack([norms(slope, _DUAL[norm]) for slope in estimate.gradients])
    distances = (-estimate.values / slopes).T
    distances = torch.where(distances.isfinite(), distances, torch.inf)
    return likely.gather(1, distances.argsort(dim=1, stable=True))[:, :count]
