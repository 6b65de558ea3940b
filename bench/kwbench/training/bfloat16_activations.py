"""Fast k-WTA and LWTA for training in bfloat16; they never take part in an evaluation.

Here equal values win together, where the activations themselves let only the first of them win. In bfloat16 about one winner in
a hundred is such a tie. Checkpoints that were trained in bfloat16 depend on this.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kwbench.networks.activations import Kwta, Lwta
from kwbench.networks.activations.selection import kth_largest


@contextmanager
def bfloat16_activations(module: nn.Module) -> Iterator[None]:
    """Replace a module's k-WTA and LWTA layers by the fast ones within the block; they use the parameters of the originals."""
    originals = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Kwta | Lwta)]
    for name, layer in originals:
        _replace(module, name, _FastKwta(layer) if isinstance(layer, Kwta) else _FastLwta(layer))
    try:
        yield
    finally:
        for name, layer in originals:
            _replace(module, name, layer)


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


class _KeepWinners(torch.autograd.Function):
    """Keep x where it is at least the threshold; the gradient passes there only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        mask = x >= threshold
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None


def _keep_winners(x: Tensor, threshold: Tensor) -> Tensor:
    if bool(threshold.isnan().any()):
        raise ValueError("a competition met NaN, which has no rank")
    out: Tensor = _KeepWinners.apply(x, threshold)  # type: ignore[no-untyped-call]
    return out


class _FastKwta(nn.Module):
    def __init__(self, layer: Kwta) -> None:
        super().__init__()
        # In a list, so that the original is no submodule and the names of weights and modules stay the same.
        self.original = [layer]

    def forward(self, x: Tensor) -> Tensor:
        layer = self.original[0]
        flat = layer.competitions(x).flatten(1)
        thresholds, _ = kth_largest(flat.detach().cpu().float().numpy(), layer.winners(flat.shape[1]))
        return _keep_winners(flat, torch.from_numpy(thresholds).to(x.device, x.dtype).unsqueeze(1)).view(x.shape)


class _FastLwta(nn.Module):
    def __init__(self, layer: Lwta) -> None:
        super().__init__()
        self.original = [layer]

    def forward(self, x: Tensor) -> Tensor:
        units = self.original[0].units
        whole = x.shape[1] // units * units
        parts = [_compete_in_groups(x[:, :whole], units)] if whole else []
        if whole < x.shape[1]:
            parts.append(_compete_in_groups(x[:, whole:], x.shape[1] - whole))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _compete_in_groups(x: Tensor, units: int) -> Tensor:
    groups: Tensor = x.unflatten(1, (-1, units))  # type: ignore[no-untyped-call]
    return _keep_winners(groups, groups.detach().amax(dim=2, keepdim=True)).flatten(1, 2)
