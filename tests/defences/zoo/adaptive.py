"""The attack written for a defence: gradients of its substitute, proposals judged on the defence itself.

Nothing of kwbench's attacks is in it, so that a second opinion is one.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.geometry import project
from kwbench.randomness import seeded_globally
from kwbench.threat import ThreatModel

_KEPT = 0.75


def adaptive_images(
    victim: nn.Module, substitute: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, draws: int = 1, steps: int = 50
) -> Tensor:
    """Return for each image of x (b, c, h, w) the proposal that the victim most often misclassifies; x if none is.

    Steps of shrinking size along the gradient's sign, with momentum, on the margin of the label y (b,) over the best other
    class, and over each class in turn. `draws` above 1 averages gradients, and judges each proposal by as many answers.
    """
    judged = 1 if draws == 1 else 20
    best, rate = x.clone(), torch.ones(len(x))
    with seeded_globally(0):
        for target in (None, *range(1, 10), None):
            rows = (rate > 0).nonzero().squeeze(1)
            if not len(rows):
                break
            others = None if target is None else (y[rows] + target) % 10
            for z in climb(substitute, x[rows], y[rows], others, threat, draws=draws, steps=steps):
                right = correct_share(victim, z, y[rows], judged)
                better = right < rate[rows]
                best[rows[better]], rate[rows[better]] = z[better], right[better]
    return best


def climb(
    network: nn.Module, x: Tensor, y: Tensor, others: Tensor | None, threat: ThreatModel, *, draws: int, steps: int
) -> Iterator[Tensor]:
    """Yield the iterates of one ascent, every tenth, from a random start in the ball."""
    z = project(x + threat.radius * (2 * torch.rand_like(x) - 1), x, threat)
    momentum = torch.zeros_like(x)
    for step in range(steps):
        z = z.detach().requires_grad_()
        loss = torch.stack([margin(network(z), y, others) for _ in range(draws)]).mean(dim=0)
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        gradient = gradient.nan_to_num() / gradient.nan_to_num().abs().flatten(1).mean(dim=1).clamp(min=1e-20).view(-1, 1, 1, 1)
        momentum = _KEPT * momentum + gradient
        size = threat.radius * 0.5 * (1 - step / steps) + 1e-3
        z = project(z.detach() + size * momentum.sign(), x, threat)
        if step % 10 == 9:
            yield z


def margin(logits: Tensor, y: Tensor, others: Tensor | None) -> Tensor:
    """Return how far the best other class, or the class `others` (b,), is above the label (b,), on a bounded scale."""
    scaled = logits / logits.detach().std(dim=1, keepdim=True).clamp(min=1e-12)
    label = scaled.gather(1, y.unsqueeze(1)).squeeze(1)
    if others is not None:
        return scaled.gather(1, others.unsqueeze(1)).squeeze(1) - label
    return scaled.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf).amax(dim=1) - label


def correct_share(network: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """Return the share of right answers to each image (b,)."""
    with torch.no_grad():
        return torch.stack([network(x).argmax(dim=1) == y for _ in range(draws)]).float().mean(dim=0)
