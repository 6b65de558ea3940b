"""Relaxed and exact gradients of small modules, and gradients estimated from values alone."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from defences.hiding import HIDING, HIDING_AND_RANDOM, N
from kwbench.config.registry import read_registry
from kwbench.networks.entries import load_entry
from kwbench.relaxation import relaxed
from support.small_models import digits

EVERY_WAY = HIDING | HIDING_AND_RANDOM


class FunctionModule(nn.Module):
    """A function as a module, with submodules that are passed to it."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.named_children()))


def rows(n: int = 8, seed: int = 0) -> Tensor:
    """Return n samples of N standard normal values."""
    return torch.randn(n, N, generator=torch.Generator().manual_seed(seed))


def seeded(run: Callable[[nn.Module, Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """Return `run(module, x)` with PyTorch's generator seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return run(module, x)


def evaluate(module: nn.Module, x: Tensor) -> Tensor:
    """Return the module's own output, without gradients."""
    with torch.no_grad():
        logits: Tensor = module(x.clone())
        return logits


def gradient(module: nn.Module, x: Tensor, run: Callable[..., Tensor] = relaxed, weights: Tensor | None = None) -> Tensor:
    """Return the gradient of a weighted sum of the outputs; the weights are the same at every call."""
    x = x.detach().requires_grad_()
    output = run(module, x)
    if weights is None:
        weights = torch.randn(output.shape[1], generator=torch.Generator().manual_seed(3)).to(output.dtype)
    return torch.autograd.grad((output * weights).sum(), x)[0]


def exact(module: nn.Module, x: Tensor) -> Tensor:
    """Return the module's own output, with exact gradients."""
    logits: Tensor = module(x)
    return logits


def smoothed_gradient(module: nn.Module, x: Tensor, weights: Tensor, sigma: float = 0.5, draws: int = 2000) -> Tensor:
    """Estimate the gradient of the same sum, smoothed by Gaussian noise, from function values alone."""
    noise = torch.randn((draws, *x.shape), generator=torch.Generator().manual_seed(5))
    up, down = (
        (seeded(evaluate, module, (x + sign * sigma * noise).flatten(0, 1)) * weights.repeat(draws, 1)).sum(dim=1)
        for sign in (1, -1)
    )
    return ((up - down).view(draws, -1, 1) * noise).mean(dim=0) / (2 * sigma)


@cache
def zoo(name: str) -> nn.Module:
    """Return a shipped network for the digits."""
    registry = read_registry(Path(__file__).resolve().parents[2] / "registry.yaml")
    return load_entry(registry, *registry.find(name), digits()).module.requires_grad_(False)
