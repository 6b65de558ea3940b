"""k-winners-take-all (Xiao, Zhong, Zheng 2020, ICLR, arXiv:1905.10510)."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kwbench.activations.fraction import sparsity
from kwbench.activations.fused import by_sample, dense, empty_like, fusible, where_nonzero
from kwbench.activations.selection import Floats, kth_largest

# So many values are ranked at a time that they stay in the processor's cache.
_AT_A_TIME = 2**19


def kwta(x: Tensor, k: int) -> Tensor:
    """The k largest values of each sample, everything else zero (eq. 1).

    `x` is (b, ...) of any dtype and memory format; all but the first dimension count as one vector, in logical order.
    Exactly k survive: among equal values the smaller index wins. The gradient of a survivor is 1, of the others 0.
    The result must not be overwritten before the backward pass, as with ReLU.
    Raises ValueError if k is out of range or a value is NaN, which has no rank.
    """
    n = math.prod(x.shape[1:])
    if not 1 <= k <= n:
        raise ValueError(f"k: {k} is not between 1 and {n}, the values of a sample")
    if fusible(x):
        out: Tensor = _Competition.apply(x, k)[0]  # type: ignore[no-untyped-call]
        return out
    flat = x.detach().flatten(1)
    return torch.where(_survivors(flat, _kth_largest(flat, k), k).view(x.shape), x, 0)


def _survivors(flat: Tensor, threshold: Tensor, k: int) -> Tensor:
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
    if flat.device.type == "cpu" and flat.is_floating_point():
        return _as_column(kth_largest(_exact(flat), k)[0], flat)
    largest = flat.topk(k, dim=1).values
    # NaN ranks first there.
    if bool(largest[:, 0].isnan().any()):
        raise ValueError("k-WTA met NaN, which has no rank")
    return largest[:, -1:].clone()


def _remember(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _to_the_kth(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    flat, threshold = ctx.saved_tensors
    place = (flat == threshold).int().argmax(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, place, gradient), None


_kth_largest.register_autograd(_to_the_kth, setup_context=_remember)


def _exact(rows: Tensor) -> Floats:
    # Float32 holds half precision exactly.
    values: Floats = (rows if rows.dtype == torch.float64 else rows.float()).numpy()
    return values


def _as_column(kth: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(kth).to(like.dtype).unsqueeze(1)


class _Competition(torch.autograd.Function):
    """The same in one operation, block by block. It keeps its result for the backward pass, and nothing of its own."""

    @staticmethod
    def forward(x: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        """The result, and the survivors where the result does not tell them, since one of them is zero."""
        x = dense(x)
        out = empty_like(x)
        rows, results = by_sample(x), by_sample(out)
        step = max(1, _AT_A_TIME // rows.shape[1])
        thresholds = torch.empty(len(rows), 1, dtype=x.dtype)
        ranked = torch.empty_like(rows[:step])
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            values, won = _exact(rows[block]), ranked[: len(rows) - start]
            kth, surplus = kth_largest(values, k)
            thresholds[block] = _as_column(kth, x)
            torch.ge(rows[block], thresholds[block], out=won)
            for row in np.flatnonzero(surplus):
                tied = _in_logical_order(np.flatnonzero(values[row] == kth[row]), x)
                won[row, torch.from_numpy(tied[-surplus[row] :])] = 0
            torch.ops.aten.threshold_backward.grad_input(rows[block], won, 0.5, grad_input=results[block])
        if bool((thresholds <= 0).any()) and int(torch.count_nonzero(out)) < k * len(x):
            return out, _survivors(x.flatten(1), thresholds, k).view(x.shape)
        return out, None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor | None]) -> None:
        out, survivors = output
        if survivors is not None:
            ctx.mark_non_differentiable(survivors)
        ctx.save_for_backward(out, survivors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        out, survivors = ctx.saved_tensors
        if survivors is not None:
            return torch.where(survivors, gradients[0], 0), None
        return where_nonzero(out, gradients[0]), None


def _in_logical_order(places: NDArray[np.intp], x: Tensor) -> NDArray[np.intp]:
    """Places in memory of the values of a sample of x, which is dense, by their index."""
    if x.is_contiguous():
        return places
    channels = x.shape[1]
    area = x.shape[2] * x.shape[3]
    ordered: NDArray[np.intp] = places[np.argsort(places % channels * area + places // channels)]
    return ordered


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
