"""Local winner-take-all (Srivastava et al. 2013, "Compete to Compute"), which xiao2020 D.3 (arXiv:1905.10510) compares with."""

from fractions import Fraction

import torch
from torch import Tensor, nn

from kwbench.activations.fraction import sparsity


def lwta(x: Tensor, units: int) -> Tensor:
    """In each group of `units` consecutive channels the largest value survives at each position, with its value and sign.

    `x` is (b, c) or (b, c, ...). Channels left over by c / units form one smaller group; the first index wins ties.
    Raises ValueError if `units` is not positive or a value is NaN.
    """
    if units < 1:
        raise ValueError(f"units: {units} is not positive")
    whole = x.shape[1] // units * units
    parts = [_compete(x[:, :whole], units)] if whole else []
    if whole < x.shape[1]:
        parts.append(_compete(x[:, whole:], x.shape[1] - whole))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _compete(x: Tensor, units: int) -> Tensor:
    blocks: Tensor = x.unflatten(1, (-1, units))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        best = blocks.amax(dim=2, keepdim=True)
        if bool(best.isnan().any()):
            raise ValueError("LWTA met NaN, which has no rank")
        winner = blocks == best
        if int(winner.sum()) > best.numel():
            winner &= winner.cumsum(dim=2) == 1
    return torch.where(winner, blocks, 0).flatten(1, 2)


class Lwta(nn.Module):
    """LWTA in groups of round(1 / gamma) channels (halves round to even).

    `effective_sparsity` tells how much really survives in a layer. Raises ValueError if gamma is not in (0, 1].
    """

    def __init__(self, gamma: Fraction | float | str) -> None:
        super().__init__()
        self.gamma = sparsity(gamma)
        self.units = round(1 / self.gamma)

    def effective_sparsity(self, channels: int) -> Fraction:
        """The share of `channels` that survives: one of each group, the smaller last group included."""
        return Fraction(-(-channels // self.units), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, ...) to the same shape."""
        return lwta(x, self.units)

    def extra_repr(self) -> str:
        """For print."""
        return f"gamma={self.gamma}, units={self.units}"
