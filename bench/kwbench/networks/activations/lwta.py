"""Local winner-take-all (Srivastava et al. 2013, "Compete to Compute"), which xiao2020 D.3 (arXiv:1905.10510) compares with."""

from fractions import Fraction
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from kwbench.networks.activations import on_gpu
from kwbench.networks.activations.fused_operation import (
    allocate_scratch,
    cache_sized_slices,
    can_fuse,
    has_zero,
    no_zero_winners,
    run_fused,
    write_winners,
    zero_winner_indices,
)
from kwbench.networks.activations.sparsity import parse_sparsity


def lwta(x: Tensor, units: int) -> Tensor:
    """Keep the largest value of each group of `units` consecutive channels at each position; set the others to zero.

    `x` is (b, c) or (b, c, ...). If `units` does not divide c, the last channels form a smaller group. The first tie wins.
    The result must not be overwritten before the backward pass, as with ReLU.
    Raises ValueError if `units` is not positive or a value is NaN; on a GPU with Triton such a group becomes NaN.
    """
    if units < 1:
        raise ValueError(f"units: {units} is not positive")
    if can_fuse(x):
        return run_fused(x, partial(_compete, units))
    if on_gpu.can_run(x):
        return on_gpu.lwta(x, units)
    return _joined([torch.where(_winner(blocks), blocks, 0) for blocks in _blocks(x, units)])


def _blocks(x: Tensor, units: int) -> list[Tensor]:
    """Return the full groups, and the smaller last one if there is one, each with its units along dimension 2."""
    whole = x.shape[1] // units * units
    parts = ((x[:, :whole], units), (x[:, whole:], x.shape[1] - whole))
    return [part.unflatten(1, (-1, size)) for part, size in parts if size and part.shape[1]]  # type: ignore[no-untyped-call]


def _joined(blocks: list[Tensor]) -> Tensor:
    parts = [group.flatten(1, 2) for group in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _winner(blocks: Tensor) -> Tensor:
    with torch.no_grad():
        best = blocks.amax(dim=2, keepdim=True)
        _require_ranks(best)
        winner = blocks == best
        if int(winner.sum()) > best.numel():
            winner &= winner.cumsum(dim=2) == 1
    return winner


def _require_ranks(best: Tensor) -> None:
    if bool(best.isnan().any()):
        raise ValueError("LWTA met NaN, which has no rank")


def _compete(units: int, x: Tensor, out: Tensor) -> Tensor:
    zeros, scratch = no_zero_winners(x), allocate_scratch(x, 3)
    for samples in cache_sized_slices(x):
        groups = _blocks(x[samples], units)
        zero_won = [_write_group_winners(*pair, scratch) for pair in zip(groups, _blocks(out[samples], units), strict=True)]
        if any(zero_won):
            zeros.append(zero_winner_indices(x[samples], _joined([_winner(blocks) for blocks in groups]), samples.start))
    return torch.cat(zeros)


def _write_group_winners(blocks: Tensor, out: Tensor, scratch: Tensor) -> bool:
    """Write the winners along dimension 2 into `out`, and return whether one of them is zero."""
    units = blocks.unbind(2)
    best, free, won = (memory[: units[0].numel()].view(units[0].shape) for memory in scratch)
    best.copy_(units[0])
    for unit in units[1:]:
        torch.maximum(best, unit, out=best)
    _require_ranks(best.max())
    free.fill_(1)
    for unit, result in zip(units, out.unbind(2), strict=True):
        torch.eq(unit, best, out=won)
        won.mul_(free)
        free.sub_(won)
        write_winners(unit, won, result)
    return has_zero(best, won)


class Lwta(nn.Module):
    """LWTA in groups of round(1 / gamma) channels (halves round to even).

    `effective_sparsity` gives the share that survives in a layer. Raises ValueError if gamma is not in (0, 1].
    """

    revision: ClassVar[int] = 1

    def __init__(self, gamma: Fraction | float | str) -> None:
        super().__init__()
        self.gamma = parse_sparsity(gamma)
        self.units = round(1 / self.gamma)

    def effective_sparsity(self, channels: int) -> Fraction:
        """Return the share of `channels` that survives: one in each group, including the smaller last group."""
        return Fraction(-(-channels // self.units), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, ...) to the same shape."""
        return lwta(x, self.units)

    def extra_repr(self) -> str:
        """For print."""
        return f"gamma={self.gamma}, units={self.units}"
