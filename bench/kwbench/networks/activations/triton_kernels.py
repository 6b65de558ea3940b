"""Triton kernels of the winner-take-all activations, for GPUs; with TRITON_INTERPRET=1 they run on a CPU, slowly.

Nothing here waits for the GPU, so passes can be recorded in CUDA graphs. NaN has no rank: it makes the outputs that it competes
with NaN, so that the logits are refused.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BITS = tl.constexpr(8)
_BINS = tl.constexpr(256)
# Values that a program handles.
_BLOCK, _SMALLEST_BLOCK = 4096, 128


@triton.jit
def _keys(x):
    """Return whole numbers that order as the values do, and which values are NaN. Both zeros have the same key."""
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    negative = (bits >> 31) != 0
    key = tl.where(negative, 0x7FFFFFFF - magnitude, magnitude + 0x80000000)
    return tl.where(magnitude == 0, 0x80000000, key).to(tl.uint32), magnitude > 0x7F800000


@triton.jit
def _ranks(position, n, CHANNELS: tl.constexpr):
    """Return numbers that are larger the smaller the logical index of a position in memory is."""
    if CHANNELS:
        return (n - 1 - (position % CHANNELS * (n // CHANNELS) + position // CHANNELS)).to(tl.uint32)
    return (n - 1 - position).to(tl.uint32)


@triton.jit
def _chosen(counts, sample, samples, remaining, START: tl.constexpr, END: tl.constexpr):
    """Follow the histograms of some digits, the highest first, to the digits of the last winner.

    Returns them as one number, how many winners are still to be found among values with these digits, and how many have them.
    """
    bins = tl.arange(0, _BINS)
    prefix = tl.zeros((), tl.uint32)
    having = tl.zeros((), tl.int32)
    for level in tl.static_range(START, END):
        # Bin 0 counts the highest digit.
        count = tl.load(counts + (level * samples + sample) * _BINS + bins)
        above = tl.sum((tl.cumsum(count, 0) < remaining).to(tl.int32), 0)
        remaining -= tl.sum(tl.where(bins < above, count, 0), 0)
        having = tl.sum(tl.where(bins == above, count, 0), 0)
        prefix = (prefix << _BITS) | (255 - above).to(tl.uint32)
    return prefix, remaining, having


@triton.jit(do_not_specialize=["k"])
def _count_digits(
    x, counts, nans, k, n, samples, CHANNELS: tl.constexpr, LEVEL: tl.constexpr, VALUES: tl.constexpr, INDICES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to the histogram of one digit: of the values, or of the ranks of those that tie with the last winner."""
    sample = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = position < n
    key, nan = _keys(tl.load(x + sample * n + position, mask=inside, other=0.0))
    if LEVEL == 0:
        found = tl.max((nan & inside).to(tl.int32), 0)
        if found > 0:
            tl.atomic_max(nans + sample, found)
    if LEVEL < VALUES:
        prefix, remaining, having = _chosen(counts, sample, samples, k, 0, LEVEL)
        digit = (key >> (32 - _BITS * (LEVEL + 1))) & 255
        if LEVEL > 0:
            inside = inside & ((key >> (32 - _BITS * LEVEL)) == prefix)
    else:
        last, remaining, having = _chosen(counts, sample, samples, k, 0, VALUES)
        if having == remaining:  # all of them win
            return
        prefix, remaining, having = _chosen(counts, sample, samples, remaining, VALUES, LEVEL)
        rank = _ranks(position, n, CHANNELS)
        digit = (rank >> (_BITS * (INDICES - 1 - (LEVEL - VALUES)))) & 255
        inside = inside & ((key >> (32 - _BITS * VALUES)) == last)
        if LEVEL > VALUES:
            inside = inside & ((rank >> (_BITS * (INDICES - (LEVEL - VALUES)))) == prefix)
    bins = tl.arange(0, _BINS)
    count = tl.histogram(tl.where(inside, 255 - digit.to(tl.int32), 0), _BINS)
    count -= tl.where(bins == 0, tl.sum((inside == 0).to(tl.int32), 0), 0)
    tl.atomic_add(counts + (LEVEL * samples + sample) * _BINS + bins, count, mask=count > 0)


@triton.jit(do_not_specialize=["k"])
def _write_largest(
    x, out, mask, counts, nans, k, n, samples, CHANNELS: tl.constexpr, VALUES: tl.constexpr, INDICES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the winners and zeros, and a bit for each winner."""
    sample = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = position < n
    value = tl.load(x + sample * n + position, mask=inside, other=0.0).to(tl.float32)
    key = _keys(value)[0]
    key = key >> (32 - _BITS * VALUES)
    last, remaining, having = _chosen(counts, sample, samples, k, 0, VALUES)
    won = key > last
    if having == remaining:
        won = won | (key == last)
    else:
        rank, remaining, having = _chosen(counts, sample, samples, remaining, VALUES, VALUES + INDICES)
        won = won | ((key == last) & (_ranks(position, n, CHANNELS) >= rank))
    result = tl.where(won, value, 0.0)
    if tl.load(nans + sample) > 0:
        result = tl.full((BLOCK,), float("nan"), tl.float32)
    tl.store(out + sample * n + position, result.to(out.dtype.element_ty), mask=inside)
    bits = tl.reshape((won & inside).to(tl.int32), (BLOCK // 8, 8)) << tl.arange(0, 8)[None, :]
    byte = tl.program_id(1) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    width = (n + 7) // 8
    tl.store(mask + sample * width + byte, tl.sum(bits, 1).to(tl.uint8), mask=byte < width)


@triton.jit
def _pass_winners(gradient, mask, out, n, BLOCK: tl.constexpr):
    """Write the gradient where the bit of a value is set, else zero."""
    sample = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = position < n
    byte = tl.load(mask + sample * ((n + 7) // 8) + position // 8, mask=inside, other=0).to(tl.int32)
    value = tl.load(gradient + sample * n + position, mask=inside, other=0.0).to(tl.float32)
    passed = tl.where(((byte >> (position % 8)) & 1) == 1, value, 0.0)
    tl.store(out + sample * n + position, passed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _addresses(lane, groups, area, channels, UNITS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Return where the first unit of a group is, how far apart its units are, and how many it has."""
    place = lane % area
    group = lane // area % groups
    sample = (lane // area // groups).to(tl.int64)
    members = tl.minimum(UNITS, channels - group * UNITS)
    if CHANNELS_LAST:
        return (sample * area + place) * channels + group * UNITS, members
    return (sample * channels + group * UNITS) * area + place, members


@triton.jit
def _compete(
    x, limits, draws, out, winners, lanes, groups, area, channels, UNITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DRAWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the winner of each group and zeros, and its number: the first largest, or the first whose limit exceeds a draw."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    start, members = _addresses(lane, groups, area, channels, UNITS, CHANNELS_LAST)
    step = 1 if CHANNELS_LAST else area
    winner = tl.zeros((BLOCK,), tl.int32)
    nan = tl.zeros((BLOCK,), tl.int1)
    if DRAWN:
        draw = tl.load(draws + lane, mask=inside, other=0.0)
        for unit in tl.static_range(UNITS - 1):
            # Limits and draws are contiguous, (b, groups, units - 1, area) and (b, groups, 1, area).
            at = (lane // area * (UNITS - 1) + unit) * area + lane % area
            passed = draw < tl.load(limits + at, mask=inside, other=0.0)
            winner += ((winner == unit) & (passed == 0)).to(tl.int32)
    else:
        best = tl.load(x + start, mask=inside, other=0.0).to(tl.float32)
        nan = _keys(best)[1]
        for unit in tl.static_range(1, UNITS):
            value = tl.load(x + start + unit * step, mask=inside & (unit < members), other=float("-inf")).to(tl.float32)
            nan = nan | _keys(value)[1]
            winner = tl.where(value > best, unit, winner)
            best = tl.where(value > best, value, best)
    for unit in tl.static_range(UNITS):
        there = inside & (unit < members)
        value = tl.load(x + start + unit * step, mask=there, other=0.0).to(tl.float32)
        kept = tl.where(nan, float("nan"), tl.where(winner == unit, value, 0.0))
        tl.store(out + start + unit * step, kept.to(out.dtype.element_ty), mask=there)
    tl.store(winners + lane, winner.to(tl.int16), mask=inside)


@triton.jit
def _pass_to_winners(
    gradient,
    winners,
    out,
    lanes,
    groups,
    area,
    channels,
    UNITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of the winner of each group, and zero for the others."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < lanes
    start, members = _addresses(lane, groups, area, channels, UNITS, CHANNELS_LAST)
    step = 1 if CHANNELS_LAST else area
    winner = tl.load(winners + lane, mask=inside, other=0).to(tl.int32)
    for unit in tl.static_range(UNITS):
        there = inside & (unit < members)
        value = tl.load(gradient + start + unit * step, mask=there, other=0.0).to(tl.float32)
        passed = tl.where(winner == unit, value, 0.0)
        tl.store(out + start + unit * step, passed.to(out.dtype.element_ty), mask=there)


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return x (b, ...) with all but the k largest values of each sample set to zero, and a bit for each winner (b, bytes).

    x is dense, float32 or bfloat16, with 1 <= k <= n < 2^24 values a sample. Among equal values the smaller logical index wins.
    The k-th largest is found by radix selection: histograms of 8 bits of the values, then, where more tie with the last winner
    than can win, of their indices. The bits are in memory order.
    """
    samples, n = len(x), math.prod(x.shape[1:])
    out = torch.empty_like(x)
    mask = torch.empty((samples, -(-n // 8)), dtype=torch.uint8, device=x.device)
    # The lower half of a bfloat16 is zero as a float32.
    values, indices = (2 if x.dtype == torch.bfloat16 else 4), max(1, -(-(n - 1).bit_length() // 8))
    counts = torch.zeros((values + indices, samples, 256), dtype=torch.int32, device=x.device)
    nans = torch.zeros(samples, dtype=torch.int32, device=x.device)
    if not x.numel():
        return out, mask
    channels = 0 if x.is_contiguous() else x.shape[1]
    grid, block = _grid(samples, n)
    for level in range(values + indices):
        _count_digits[grid](x, counts, nans, k, n, samples, channels, level, values, indices, block)
    _write_largest[grid](x, out, mask, counts, nans, k, n, samples, channels, values, indices, block)
    return out, mask


def pass_winners(gradient: Tensor, mask: Tensor) -> Tensor:
    """Return the gradient (b, ...), dense, where a bit of the mask of `largest` is set, else zero."""
    out = torch.empty_like(gradient)
    if gradient.numel():
        n = math.prod(gradient.shape[1:])
        grid, block = _grid(len(gradient), n)
        _pass_winners[grid](gradient, mask, out, n, block)
    return out


def compete(x: Tensor, units: int, limits: Tensor | None = None, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return x (b, c, ...) with all but one of each `units` consecutive channels set to zero, and the winners.

    x is dense, float32 or bfloat16; the last group may be smaller. The first largest value wins; or, given limits
    (b, groups, units - 1, ...) that do not fall and draws (b, groups, 1, ...), the first unit whose limit exceeds the draw, the
    last one if none does. The winners (b, groups, ...) are numbers of units.
    """
    groups = -(-x.shape[1] // units)
    out = torch.empty_like(x)
    winners = torch.empty((len(x), groups, *x.shape[2:]), dtype=torch.int16, device=x.device)
    if x.numel():
        drawn = draws is not None
        _compete[_lanes(winners)](
            x,
            limits.contiguous() if limits is not None else x,
            draws.contiguous() if draws is not None else x,
            out, winners, *_geometry(x, winners, units), drawn, _BLOCK // 8,
        )  # fmt: skip
    return out, winners


def pass_to_winners(gradient: Tensor, winners: Tensor, units: int) -> Tensor:
    """Return the gradient (b, c, ...), dense, of the winners of `compete`, zero elsewhere."""
    out = torch.empty_like(gradient)
    if gradient.numel():
        _pass_to_winners[_lanes(winners)](gradient, winners, out, *_geometry(gradient, winners, units), _BLOCK // 8)
    return out


def _grid(samples: int, n: int) -> tuple[tuple[int, int], int]:
    block = max(_SMALLEST_BLOCK, min(_BLOCK, triton.next_power_of_2(n)))
    return (samples, triton.cdiv(n, block)), block


def _lanes(winners: Tensor) -> tuple[int]:
    return (triton.cdiv(winners.numel(), _BLOCK // 8),)


def _geometry(x: Tensor, winners: Tensor, units: int) -> tuple[Any, ...]:
    return winners.numel(), winners.shape[1], math.prod(x.shape[2:]), x.shape[1], units, not x.is_contiguous()
