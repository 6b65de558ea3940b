"""k-winners-take-all (Xiao, Zhong, Zheng 2020, ICLR, arXiv:1905.10510)."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kwbench.activations.fraction import sparsity


def kwta(x: Tensor, k: int) -> Tensor:
    """The k largest values of each sample, everything else zero (eq. 1).

    `x` is (b, ...) of any dtype and memory format; all but the first dimension count as one vector, in logical order.
    Exactly k survive: among equal values the smaller index wins. The gradient of a survivor is 1, of the others 0.
    Raises ValueError if k is out of range or a value is NaN, which has no rank.
    """
    flat = x.detach().flatten(1)
    if not 1 <= k <= flat.shape[1]:
        raise ValueError(f"k: {k} is not between 1 and {flat.shape[1]}, the values of a sample")
    return torch.where(_survivors(flat, k).view(x.shape), x, 0)


def _survivors(flat: Tensor, k: int) -> Tensor:
    threshold: Tensor = _kth_largest(flat, k)
    if bool(flat.amax(dim=1).isnan().any()):
        raise ValueError("k-WTA met NaN, which has no rank")
    survivors = flat >= threshold
    if int(survivors.sum()) > k * len(flat):
        above = flat > threshold
        tied = flat == threshold
        room = k - above.sum(dim=1, keepdim=True)
        survivors = above | (tied & (tied.cumsum(dim=1) <= room))
    return survivors


@torch.library.custom_op("kwbench::kth_largest", mutates_args=())
def _kth_largest(flat: Tensor, k: int) -> Tensor:
    # An operation of its own: what watches PyTorch's operations sees a selection, not a detour through numpy.
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.bfloat16):
        # numpy selects without sorting, about three times as fast as topk on a thousand values. Float32 holds bfloat16 exactly.
        place = flat.shape[1] - k
        chosen = np.partition(flat.float().numpy(), place, axis=1)[:, place : place + 1]
        return torch.from_numpy(chosen.copy()).to(flat.dtype)
    return flat.topk(k, dim=1).values[:, -1:].clone()


def _remember(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _to_the_kth(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    flat, threshold = ctx.saved_tensors
    place = (flat == threshold).int().argmax(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, place, gradient), None


_kth_largest.register_autograd(_to_the_kth, setup_context=_remember)


class Kwta(nn.Module):
    """k-WTA with k = max(1, floor(gamma * N)) of the N values of a sample (section 2.1).

    `gamma` in (0, 1] is taken as an exact fraction: 0.1 of 10 is 1, whatever binary floats say. Raises ValueError outside.
    """

    def __init__(self, gamma: Fraction | float | str) -> None:
        super().__init__()
        self.gamma = sparsity(gamma)

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) to the same shape."""
        return kwta(x, self.winners(math.prod(x.shape[1:])))

    def winners(self, n: int) -> int:
        """k for a layer of n values a sample."""
        return max(1, self.gamma.numerator * n // self.gamma.denominator)

    def extra_repr(self) -> str:
        """For print."""
        return f"gamma={self.gamma}"
