"""Stochastic local winner-take-all (Panousis, Chatzis, Theodoridis 2021, arXiv:2112.02671)."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import on_gpu
from kwbench.networks.activations.fused_operation import (
    allocate_scratch,
    cache_sized_slices,
    can_fuse,
    empty_like,
    has_zero,
    is_batched,
    no_zero_winners,
    run_fused,
    write_winners,
    zero_winner_indices,
)

Sampling = Literal["hard", "relaxed"]

# The sigmoid of this and of anything larger is 1 in float64, too.
_SATURATED = 40.0


class StochasticLwta(nn.Module):
    """Draw a winner among each block of `units` consecutive channels at each position, with the softmax of the values.

    The winner passes its value, the others zero (eq. 1 to 5). Training draws one relaxed sample at `train_temperature` (eq. 7)
    and keeps its contribution to the ELBO in `kl` (eq. 8). Evaluation draws hard one-hot samples, as in the paper, or relaxed
    ones at the small `temperature`, as in the authors' code. The gradient of a hard sample reaches the input through the
    winner's value alone.
    Raises ValueError if the units or temperatures are out of range, or the channels do not divide into blocks.
    """

    revision: ClassVar[int] = 1

    kl: Tensor

    def __init__(
        self, units: int = 2, sampling: Sampling = "hard", temperature: float = 0.01, train_temperature: float = 0.67
    ) -> None:
        super().__init__()
        if not isinstance(units, int) or units < 2:
            raise ValueError(f"units: {units!r}; a whole number of at least 2 must compete")
        if not (0 < temperature < math.inf and 0 < train_temperature < math.inf):
            raise ValueError("temperature and train_temperature must be positive and finite")
        if sampling not in ("hard", "relaxed"):
            raise ValueError(f"sampling: {sampling!r} is neither 'hard' nor 'relaxed'")
        self.units, self.sampling = units, sampling
        self.temperature, self.train_temperature = temperature, train_temperature
        self.kl = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """(b, c) or (b, c, ...) to the same shape; fresh draws at every call, from torch's global generator."""
        if x.shape[1] % self.units:
            raise ValueError(f"units: {x.shape[1]} channels do not divide into blocks of {self.units}")
        blocks: Tensor = x.unflatten(1, (-1, self.units))  # type: ignore[no-untyped-call]
        if not self.training and self.sampling == "hard" and on_gpu.can_run(x):
            return on_gpu.drawn(x, self.units, *(_duel_limits(blocks) if self.units == 2 else _limits(blocks)))
        if not self.training and self.units == 2:
            return self._duel(x)
        if not self.training and self.sampling == "hard":
            return (blocks * _one_hot_sample(blocks.detach())).flatten(1, 2)
        gumbel = _gumbel_noise(blocks)
        if self.training:
            log_q = F.log_softmax(blocks, dim=2)
            mask = F.softmax((log_q + gumbel) / self.train_temperature, dim=2).to(blocks.dtype)
            # log q - log p at the relaxed sample, summed over blocks and positions, averaged over samples.
            self.kl = (mask * (log_q + math.log(self.units))).sum() / len(x)
            return (blocks * mask).flatten(1, 2)
        # softmax ignores the constant that separates values from log-probabilities.
        mask = F.softmax((blocks + gumbel) / self.temperature, dim=2).to(blocks.dtype)
        return (blocks * mask).flatten(1, 2)

    def _duel(self, x: Tensor) -> Tensor:
        """Draw between two units at half the cost: the softmax of two values is the sigmoid of their difference."""
        # Contiguous only: with another memory order the values would get other draws.
        if can_fuse(x) and x.is_contiguous():
            if self.sampling == "hard":
                return run_fused(x, _draw)
            if not torch.is_grad_enabled() and not is_batched(x):
                return _share(x, self.temperature)
        first, second = x.unflatten(1, (-1, 2)).unbind(2)  # type: ignore[no-untyped-call]
        lead = first - second
        if self.sampling == "hard":
            wins = torch.rand_like(lead, dtype=_at_least_float32(lead)) < lead.detach().to(_at_least_float32(lead)).sigmoid()
            return torch.stack([torch.where(wins, first, 0), torch.where(wins, 0, second)], dim=2).flatten(1, 2)
        # The difference of two Gumbel variables is logistic.
        noise = torch.rand_like(lead, dtype=_at_least_float32(lead)).logit_(2**-24)
        share = ((lead + noise) / self.temperature).sigmoid().to(lead.dtype)
        return torch.stack([first * share, second * (1 - share)], dim=2).flatten(1, 2)

    def extra_repr(self) -> str:
        """For print."""
        return f"units={self.units}, sampling={self.sampling!r}, temperature={self.temperature}"


def _draw(x: Tensor, out: Tensor) -> Tensor:
    """Draw hard between two units as one operation. x is contiguous."""
    blocks: Tensor = x.unflatten(1, (-1, 2))  # type: ignore[no-untyped-call]
    results: Tensor = out.unflatten(1, (-1, 2))  # type: ignore[no-untyped-call]
    lead = empty_like(out.view(-1)[: out.numel() // 2].view(blocks[:, :, 0].shape))
    torch.sub(blocks[:, :, 0], blocks[:, :, 1], out=lead)
    chance = lead.to(_at_least_float32(lead)).sigmoid_()
    drawn = empty_like(chance).uniform_()
    zeros, scratch = no_zero_winners(x), allocate_scratch(x)[0]
    for samples in cache_sized_slices(x):
        won = scratch[: lead[samples].numel()].view(lead[samples].shape)
        torch.lt(drawn[samples], chance[samples], out=won)
        write_winners(blocks[samples, :, 0], won, results[samples, :, 0])
        write_winners(blocks[samples, :, 1], won.neg_().add_(1), results[samples, :, 1])
        if has_zero(x[samples], scratch[: x[samples].numel()].view(x[samples].shape)):
            wins = drawn[samples] < chance[samples]
            zeros.append(zero_winner_indices(x[samples], torch.stack([wins, ~wins], dim=2).flatten(1, 2), samples.start))
    return torch.cat(zeros)


def _share(x: Tensor, temperature: float) -> Tensor:
    """Share values among two units with the bits of `_duel` without a gradient, in four fifths of its time. x is contiguous."""
    out = empty_like(x)
    blocks: Tensor = x.unflatten(1, (-1, 2))  # type: ignore[no-untyped-call]
    results: Tensor = out.unflatten(1, (-1, 2))  # type: ignore[no-untyped-call]
    noise = torch.rand(blocks[:, :, 0].shape, dtype=_at_least_float32(x))
    for samples in cache_sized_slices(x):
        first, second = blocks[samples].unbind(2)
        lead = noise[samples].logit_(2**-24).add_(first - second)
        # From about 17 the sigmoid is 1. Beyond 87 its exponential is a denormal number, which takes ten times as long.
        share = lead.div_(temperature).clamp_(max=_SATURATED).sigmoid_().to(x.dtype)
        torch.mul(first, share, out=results[samples, :, 0])
        torch.mul(second, share.neg_().add_(1), out=results[samples, :, 1])
    return out


def _one_hot_sample(blocks: Tensor) -> Tensor:
    """Draw one winner in dimension 2 from the softmax; return it as 0 and 1 in the dtype of the blocks."""
    limits, draws = _limits(blocks)
    passed = draws < limits
    reached = torch.cat([passed, torch.ones_like(passed[:, :, :1])], dim=2)
    before = torch.cat([torch.zeros_like(passed[:, :, :1]), passed], dim=2)
    return (reached & ~before).to(blocks.dtype)


def _limits(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of the intervals of all units but the last, and a uniform number per block, which falls into one of them.

    The last interval extends to 1 despite rounding.
    """
    # Half precision would round probabilities and draws to a few hundred steps.
    cumulative = F.softmax(blocks.detach(), dim=2, dtype=_at_least_float32(blocks)).cumsum(dim=2)
    return cumulative[:, :, :-1], torch.rand_like(cumulative[:, :, :1])


def _duel_limits(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chance of the first of two units, and a uniform number per block, as `_duel` draws it."""
    lead = blocks.detach()[:, :, 0] - blocks.detach()[:, :, 1]
    draws = torch.rand_like(lead, dtype=_at_least_float32(lead))
    return lead.to(_at_least_float32(lead)).sigmoid().unsqueeze(2), draws.unsqueeze(2)


def _gumbel_noise(blocks: Tensor) -> Tensor:
    """-log(-log V), V uniform on (0, 1), of the shape of the blocks, in float32 at least."""
    uniform = torch.rand_like(blocks, dtype=_at_least_float32(blocks))
    # The floors keep both logarithms finite; 1 - 2^-24 is the largest float32 below 1 that rand can give.
    return -(-uniform.clamp(1e-20, 1 - 2**-24).log()).log()


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
