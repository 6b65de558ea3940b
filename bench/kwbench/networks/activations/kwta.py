"""k-winners-take-all (Xiao, Zhong, Zheng 2020, ICLR, arXiv:1905.10510)."""

import math
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kwbench.networks.activations.fraction import sparsity
from kwbench.networks.activations.fused import (
    at_a_time,
    by_sample,
    fusible,
    has_zero,
    no_zeros,
    pass_on,
    run,
    scratch_for,
    zero_winners,
)
from kwbench.networks.activations.selection import Floats, kth_largest


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
        return run(x, partial(_compete, k))
    flat = x.detach().flatten(1)
    return torch.where(_survivors(flat, torch.ops.kwbench.kth_largest(flat, k), k).view(x.shape), x, 0)


def _survivors(flat: Tensor, threshold: Tensor, k: int) -> Tensor:
    if not flat.is_floating_point():
        flat, threshold = flat.double(), threshold.double()
    # Always these operations: what a relaxed pass makes of a sample must not depend on ties, in it or in another.
    survivors: Tensor = torch.ops.kwbench.untied(flat, threshold, k) >= threshold
    return survivors


def _untied(flat: Tensor, threshold: Tensor, k: int) -> Tensor:
    """The values, of which those that lose among equals stand a little below the threshold."""
    untied = flat.clone()
    crowded = ((flat >= threshold).sum(dim=1) > k).nonzero().squeeze(1)
    if len(crowded):
        rows, border = flat[crowded], threshold[crowded]
        tied = rows == border
        room = k - (rows > border).sum(dim=1, keepdim=True)
        limits = torch.finfo(flat.dtype)
        # Nothing is below an infinite border; no number is at or above one.
        below = (border - (border.abs() * limits.eps).clamp_min(limits.tiny)).masked_fill(border.isinf(), torch.nan)
        untied[crowded] = torch.where(tied & (tied.cumsum(dim=1) > room), below, rows)
    return untied


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    if flat.device.type == "cpu" and flat.is_floating_point():
        return _as_column(kth_largest(_exact(flat), k)[0], flat)
    # Radix selection on a GPU, as long as the winners need no order. NaN ranks first, and is then the least of any.
    least = flat.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    if bool(least.isnan().any()):
        raise ValueError("k-WTA met NaN, which has no rank")
    return least


def _remember(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _to_the_kth(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    flat, threshold = ctx.saved_tensors
    place = (flat == threshold).int().argmax(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, place, gradient), None


def _as_they_are(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return gradient, None, None


# Operations of their own: what watches PyTorch's operations sees a selection, not a detour through numpy, and the same ones
# whatever the values. `custom_op` would import the compiler, which takes longer than many an evaluation.
_LIBRARY = torch.library.Library("kwbench", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("kth_largest(Tensor flat, int k) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("untied(Tensor flat, Tensor threshold, int k) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("kth_largest", _kth_largest, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("untied", _untied, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_autograd("kwbench::kth_largest", _to_the_kth, setup_context=_remember, lib=_LIBRARY)
torch.library.register_autograd("kwbench::untied", _as_they_are, lib=_LIBRARY)


def _exact(rows: Tensor) -> Floats:
    # Float32 holds half precision exactly.
    values: Floats = (rows if rows.dtype == torch.float64 else rows.float()).numpy()
    return values


def _as_column(kth: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(kth).to(like.dtype).unsqueeze(1)


def _compete(k: int, x: Tensor, out: Tensor) -> Tensor:
    rows, results, zeros = by_sample(x), by_sample(out), no_zeros(x)
    scratch = scratch_for(x).view(-1, rows.shape[1])
    for some in at_a_time(x):
        values = _exact(rows[some])
        kth, surplus = kth_largest(values, k)
        threshold = _as_column(kth, x)
        won = torch.ge(rows[some], threshold, out=scratch[: len(values)])
        for row in np.flatnonzero(surplus):
            tied = _in_logical_order(np.flatnonzero(values[row] == kth[row]), x)
            won[row, torch.from_numpy(tied[-surplus[row] :])] = 0
        pass_on(rows[some], won, results[some])
        if (kth <= 0).any() and has_zero(rows[some], won):
            survivors = _survivors(x[some].flatten(1), threshold, k).view(x[some].shape)
            zeros.append(zero_winners(x[some], survivors, some.start))
    return torch.cat(zeros)


def _in_logical_order(places: NDArray[np.intp], x: Tensor) -> NDArray[np.intp]:
    """Places in memory of the values of a sample of x, which is dense, by their index."""
    if x.is_contiguous():
        return places
    channels = x.shape[1]
    area = x.shape[2] * x.shape[3]
    ordered: NDArray[np.intp] = places[np.argsort(places % channels * area + places // channels)]
    return ordered


Within = Literal["image", "channel"]


class Kwta(nn.Module):
    """k-WTA with k = max(1, floor(gamma * N)) of the N values that compete (section 2.1).

    `gamma` in (0, 1] is taken as an exact fraction: 0.1 of 10 is 1, whatever binary floats say. All values of a sample compete
    with each other, or, `within` channel, those of each channel among themselves; then layers without width and height are one
    competition, as in the authors' public code. Raises ValueError for a gamma outside and for any other `within`.
    """

    revision: ClassVar[int] = 1

    def __init__(self, gamma: Fraction | float | str, within: Within = "image") -> None:
        super().__init__()
        if within not in get_args(Within):
            raise ValueError(f"within: {within!r} is not one of {', '.join(get_args(Within))}")
        self.gamma, self.within = sparsity(gamma), within

    def forward(self, x: Tensor) -> Tensor:
        """(b, ...) to the same shape."""
        rows = self.competitions(x)
        return kwta(rows, self.winners(math.prod(rows.shape[1:]))).view(x.shape)

    def competitions(self, x: Tensor) -> Tensor:
        """The values of x (b, ...) with a row for each competition, of which there are b or b * channels."""
        return x.flatten(0, 1) if self.within == "channel" and x.dim() > 2 else x

    def winners(self, n: int) -> int:
        """k of n values that compete."""
        return max(1, self.gamma.numerator * n // self.gamma.denominator)

    def extra_repr(self) -> str:
        """For print."""
        return f"gamma={self.gamma}" + (", within=channel" if self.within == "channel" else "")
