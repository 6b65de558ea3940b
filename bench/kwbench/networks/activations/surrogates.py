"""Surrogates with the weights of a network and smoother activations, whose gradients are informative.

Adversarial examples for a surrogate may transfer to the network. Such gradients removed the whole robustness gain of
MeanSparse, which thresholds as k-WTA does (see its entries in RobustBench).
"""

import copy
import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.errors import NotApplicable, UsageError, did_you_mean
from kwbench.networks.activations.kwta import Kwta
from kwbench.networks.activations.lwta import Lwta
from kwbench.networks.activations.stochastic_lwta import StochasticLwta

Swap = Literal["relu", "identity", "mean-field", "argmax"]

# The temperature of a mean-field competition of k-WTA or LWTA, in standard deviations of a sample's values. On 96 test digits
# transfer from the surrogate left the adversarially trained k-WTA-0.1 a robust accuracy of 41, 21, 14 and 33 % at temperatures
# 0.03, 0.1, 0.3 and 1; LWTA-0.2 kept 55, 26, 7 and 62 %.
_SOFTNESS = 0.3


def swap_activations(module: nn.Module, kind: str) -> nn.Module:
    """Return a copy of the module with its winner-take-all activations replaced.

    `relu` and `identity` put these in their place. `mean-field` puts x times the probability with which it wins: exact for
    stochastic LWTA (the mean of hard samples), at a temperature of 0.3 standard deviations for the others. `argmax` replaces
    stochastic LWTA by LWTA, where the likelier unit always wins.
    Raises UsageError for an unknown kind, NotApplicable if there is nothing to replace.
    """
    if kind not in get_args(Swap):
        raise UsageError(f"surrogate 'swap:{kind}' is unknown; {did_you_mean(kind, get_args(Swap))}")
    replaceable = (StochasticLwta,) if kind == "argmax" else (Kwta, Lwta, StochasticLwta)
    copied = copy.deepcopy(module)
    layers = [name for name, layer in copied.named_modules(remove_duplicate=False) if isinstance(layer, replaceable)]
    if not layers:
        names = "stochastic LWTA" if kind == "argmax" else "k-WTA or LWTA"
        raise NotApplicable(f"swap:{kind} replaces kwbench's own {names} activations, and the model has none")
    if layers == [""]:
        return _replacement(copied, kind)
    for name in layers:
        parent, _, child = name.rpartition(".")
        setattr(copied.get_submodule(parent), child, _replacement(copied.get_submodule(name), kind))
    return copied.train(module.training)


def _replacement(layer: nn.Module, kind: str) -> nn.Module:
    if kind == "relu":
        return nn.ReLU()
    if kind == "identity":
        return nn.Identity()
    if isinstance(layer, StochasticLwta):
        units = layer.units
        return Lwta(f"1/{units}") if kind == "argmax" else _Weighted(lambda x: _shares(x, units, 1.0))
    if isinstance(layer, Lwta):
        units = layer.units
        return _Weighted(lambda x: _shares(x, units, _SOFTNESS * _deviation(x)))
    assert isinstance(layer, Kwta)
    competitions, winners = layer.competitions, layer.winners

    def likely_winners(x: Tensor) -> Tensor:
        rows = competitions(x)
        return _above_threshold(rows, winners(math.prod(rows.shape[1:]))).view(x.shape)

    return _Weighted(likely_winners)


class _Weighted(nn.Module):
    """Multiplies x by a weight for each of its values."""

    def __init__(self, weight: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) to the same shape."""
        return x * self.weight(x)


def _shares(x: Tensor, units: int, temperature: Tensor | float) -> Tensor:
    """Return the softmax of each group of `units` consecutive channels; the last group may be smaller."""
    logits = x / temperature
    whole = x.shape[1] // units * units
    groups: list[Tensor] = []
    for part, size in ((logits[:, :whole], units), (logits[:, whole:], x.shape[1] - whole)):
        if part.shape[1]:
            blocks: Tensor = part.unflatten(1, (-1, size))  # type: ignore[no-untyped-call]
            groups.append(F.softmax(blocks, dim=2).flatten(1, 2))
    return torch.cat(groups, dim=1)


def _above_threshold(x: Tensor, k: int) -> Tensor:
    """Return a sigmoid of x around the midpoint between the k-th largest value of a sample and the next one."""
    flat = x.detach().flatten(1)
    largest = flat.topk(min(k + 1, flat.shape[1]), dim=1).values
    threshold = (largest[:, k - 1] + largest[:, -1]) / 2
    if k == flat.shape[1]:
        return torch.ones_like(x)
    return torch.sigmoid((x - _column(threshold, x)) / (_SOFTNESS * _deviation(x)))


def _deviation(x: Tensor) -> Tensor:
    return _column(x.detach().flatten(1).std(dim=1).clamp_min(1e-6), x)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *([1] * (like.dim() - 1)))
