"""k-WTA and LWTA as training at half precision has them: what training competes with, never what is evaluated.

They let equal values win together, where the activations themselves let the first one win. In bfloat16 about one winner in a
hundred is such a second. It is part of what the checkpoints trained so are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kwbench.networks.activations import Kwta, Lwta
from kwbench.networks.activations.selection import kth_largest


@contextmanager
def swift(module: nn.Module) -> Iterator[None]:
    """Let a module's k-WTA and LWTA layers compete swiftly until the block ends. Their parameters stay theirs."""
    places = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Kwta | Lwta)]
    for name, layer in places:
        _put(module, name, _SwiftKwta(layer) if isinstance(layer, Kwta) else _SwiftLwta(layer))
    try:
        yield
    finally:
        for name, layer in places:
            _put(module, name, layer)


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


class _Winners(torch.autograd.Function):
    """x where it is at least the threshold; the gradient goes where x went."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> Tensor:
        mask = x >= threshold
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradients[0] * mask, None


def _winners(x: Tensor, threshold: Tensor) -> Tensor:
    if bool(threshold.isnan().any()):
        raise ValueError("a competition met NaN, which has no rank")
    out: Tensor = _Winners.apply(x, threshold)  # type: ignore[no-untyped-call]
    return out


class _SwiftKwta(nn.Module):
    def __init__(self, layer: Kwta) -> None:
        super().__init__()
        # In a list, so that it is no part of the module: names of weights and parts stay what they are.
        self.of = [layer]

    def forward(self, x: Tensor) -> Tensor:
        flat = self.of[0].competitions(x).flatten(1)
        ranked, _ = kth_largest(flat.detach().cpu().float().numpy(), self.of[0].winners(flat.shape[1]))
        return _winners(flat, torch.from_numpy(ranked).to(x.device, x.dtype).unsqueeze(1)).view(x.shape)


class _SwiftLwta(nn.Module):
    def __init__(self, layer: Lwta) -> None:
        super().__init__()
        self.of = [layer]

    def forward(self, x: Tensor) -> Tensor:
        units = self.of[0].units
        whole = x.shape[1] // units * units
        parts = [_groups(x[:, :whole], units)] if whole else []
        if whole < x.shape[1]:
            parts.append(_groups(x[:, whole:], x.shape[1] - whole))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _groups(x: Tensor, units: int) -> Tensor:
    blocks: Tensor = x.unflatten(1, (-1, units))  # type: ignore[no-untyped-call]
    return _winners(blocks, blocks.detach().amax(dim=2, keepdim=True)).flatten(1, 2)
