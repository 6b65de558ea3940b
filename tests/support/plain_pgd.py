"""Plain PGD for checking the fixtures, independent of kwbench's attacks."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.geometry import project
from kwbench.threat import ThreatModel


def accuracy(network: nn.Module, x: Tensor, y: Tensor, draws: int = 1) -> Tensor:
    """Return the share of `draws` predictions that are correct, for each sample (b,)."""
    with torch.no_grad():
        return torch.stack([network(x).argmax(dim=1) == y for _ in range(draws)]).float().mean(dim=0)


def descend(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
    loss: Literal["cross_entropy", "margin"] = "cross_entropy",
    draws: int = 1,
) -> Tensor:
    """Run PGD in linf from a random start, on gradients averaged over `draws` passes; return the last iterate."""
    z = (x + threat.radius * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        z = z.detach().requires_grad_()
        outputs = [network(z) for _ in range(draws)]
        (gradient,) = torch.autograd.grad(torch.stack([_objective(logits, y, loss) for logits in outputs]).sum(), z)
        z = project(z.detach() + step_size * gradient.sign(), x, threat)
    return z


def _objective(logits: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "cross_entropy":
        return F.cross_entropy(logits, y, reduction="sum")
    true = F.one_hot(y, logits.shape[1]).bool()
    return (logits.masked_fill(true, -torch.inf).amax(dim=1) - logits[true]).sum()
