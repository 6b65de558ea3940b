"""k-winners-take-all (Xiao, Zhong, Zheng 2020, ICLR, arXiv:1905.10510)."""

import math
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kwbench.networks.activations import on_gpu
from kwbench.networks.activations.fused_operation import (
    allocate_scratch,
    cache_sized_slices,
    can_fuse,
    has_zero,
    no_zero_winners,
    rows_in_memory,
    run_fused,
    write_winners,
    zero_winner_indices,
)
from kwbench.networks.activations.selection import Floats, kth_largest
from kwbench.networks.activations.sparsity import parse_sparsity


def kwta(x: Tensor, k: int) -> Tensor:
    """Keep the k largest values of each sample and set all others to zero (eq. 1).

    `x` is (b, ...) of any dtype and memory format; all but the first dimension count as one vector, in logical order.
    Exactly k survive: among equal values the smaller index wins. The gradient of a survivor is 1, of the others 0.
    The result must not be overwritten before the backward pass, as with ReLU.
    Raises ValueError if k is out of range or a value is NaN, which has no rank; on a GPU with Triton such a sample becomes NaN.
    """
    n = math.prod(x.shape[1:])
    if not 1 <= k <= n:
        raise ValueError(f"k: {k} is not between 1 and {n}, the values of a sample")
    if can_fuse(x):
        return run_fused(x, partial(_compete, k))
    if on_gpu.can_run(x):
        return on_gpu.kwta(x, k)
    flat = x.detach().flatten(1)
    return torch.where(_survivors(flat, torch.ops.kwbench.kth_largest(flat, k), k).view(x.shape), x, 0)


def _survivors(flat: Tensor, threshold: Tensor, k: int) -> Tensor:
    if not flat.is_floating_point():
        flat, threshold = flat.double(), threshold.double()
    # The same operations with and without ties: the relaxed gradient of a sample must not depend on ties in any sample.
    survivors: Tensor = torch.ops.kwbench.untied(flat, threshold, k) >= threshold
    return survivors


def _untied(flat: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Return the values; of those that tie with the threshold, the ones that lose are moved slightly below it."""
    untied = flat.clone()
    with_ties = ((flat >= threshold).sum(dim=1) > k).nonzero().squeeze(1)
    if len(with_ties):
        rows, border = flat[with_ties], threshold[with_ties]
        tied = rows == border
        room = k - (rows > border).sum(dim=1, keepdim=True)
        limits = torch.finfo(flat.dtype)
        # No number is below a border of -inf; NaN is never at or above the threshold.
        below = (border - (border.abs() * limits.eps).clamp_min(limits.tiny)).masked_fill(border.isinf(), torch.nan)
        untied[with_ties] = torch.where(tied & (tied.cumsum(dim=1) > room), below, rows)
    return untied


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    if flat.device.type == "cpu" and flat.is_floating_point():
        return _as_column(kth_largest(_exact(flat), k)[0], flat)
    # Unsorted, which lets a GPU use radix selection. NaN ranks first, and then `amin` returns it.
    least = flat.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    if bool(least.isnan().any()):
        raise ValueError("k-WTA met NaN, which has no rank")
    return least


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _kth_largest_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    flat, threshold = ctx.saved_tensors
    index = (flat == threshold).int().argmax(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, index, gradient), None


def _untied_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return gradient, None, None


# Custom operations, so that a dispatch mode sees a selection rather than a detour through numpy, and the same operations for
# all values. `custom_op` would import the compiler, which takes longer than many an evaluation.
_LIBRARY = torch.library.Library("kwbench", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("kth_largest(Tensor flat, int k) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("untied(Tensor flat, Tensor threshold, int k) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("kth_largest", _kth_largest, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("untied", _untied, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_autograd("kwbench::kth_largest", _kth_largest_backward, setup_context=_save_for_backward, lib=_LIBRARY)
torch.library.register_autograd("kwbench::untied", _untied_backward, lib=_LIBRARY)


def _exact(rows: Tensor) -> Floats:
    # Half precision converts to float32 exactly.
    values: Floats = (rows if rows.dtype == torch.float64 else rows.float()).numpy()
    return values


def _as_column(kth: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(kth).to(like.dtype).unsqueeze(1)


def _compete(k: int, x: Tensor, out: Tensor) -> Tensor:
    rows, results, zeros = rows_in_memory(x), rows_in_memory(out), no_zero_winners(x)
    scratch = allocate_scratch(x).view(-1, rows.shape[1])
    for samples in cache_sized_slices(x):
        values = _exact(rows[samples])
        kth, surplus = kth_largest(values, k)
        threshold = _as_column(kth, x)
        won = torch.ge(rows[samples], threshold, out=scratch[: len(values)])
        for row in np.flatnonzero(surplus):
            tied = _in_logical_order(np.flatnonzero(values[row] == kth[row]), x)
            won[row, torch.from_numpy(tied[-surplus[row] :])] = 0
        write_winners(rows[samples], won, results[samples])
        if (kth <= 0).any() and has_zero(rows[samples], won):
            survivors = _survivors(x[samples].flatten(1), threshold, k).view(x[samples].shape)
            zeros.append(zero_winner_indices(x[samples], survivors, samples.start))
    return torch.cat(zeros)


def _in_logical_order(positions: NDArray[np.intp], x: Tensor) -> NDArray[np.intp]:
    """Sort positions in memory of values of one sample of x, which is dense, by logical index."""
    if x.is_contiguous():
        return positions
    channels = x.shape[1]
    area = x.shape[2] * x.shape[3]
    ordered: NDArray[np.intp] = positions[np.argsort(positions % channels * area + positions // channels)]
    return ordered


Within = Literal["image", "channel"]


class Kwta(nn.Module):
    """k-WTA with k = max(1, floor(gamma * N)) of the N values that compete (section 2.1).

    `gamma` in (0, 1] is taken as an exact fraction: 0.1 of 10 is 1, without binary rounding. With `within` "image" all values
    of a sample compete with each other; with "channel" those of each channel do, and layers without width and height are one
    competition, as in the authors' public code. Raises ValueError for a gamma outside (0, 1] and for any other `within`.
    """

    revision: ClassVar[int] = 1

    def __init__(self, gamma: Fraction | float | str, within: Within = "image") -> None:
        super().__init__()
        if within not in get_args(Within):
            raise ValueError(f"within: {within!r} is not one of {', '.join(get_args(Within))}")
        self.gamma, self.within = parse_sparsity(gamma), within

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) to the same shape."""
        rows = self.competitions(x)
        return kwta(rows, self.winners(math.prod(rows.shape[1:]))).view(x.shape)

    def competitions(self, x: Tensor) -> Tensor:
        """Return the values of x (b, ...) with one row for each competition: b or b * channels rows."""
        return x.flatten(0, 1) if self.within == "channel" and x.dim() > 2 else x

    def winners(self, n: int) -> int:
        """The number k of winners among n values."""
        return max(1, self.gamma.numerator * n // self.gamma.denominator)

    def extra_repr(self) -> str:
        """For print."""
        return f"gamma={self.gamma}" + (", within=channel" if self.within == "channel" else "")
