"""Soft distributions of whole numbers: for each number of an integer tensor of shape s, a probability of each of 0 to k - 1.

A relaxed integer has such a distribution as its `choice` (see `RelaxedTensor`). An operation on integers pushes it forward: the
operation is applied to every value that its arguments may have, and each result gets the probability of its arguments.
"""

import math

import torch
from torch import Tensor

# The largest number of entries of a distribution, and the largest number of different values of one integer.
LARGEST = 2**24
MOST_VALUES = 4096


def resized(choice: Tensor, k: int) -> Tensor:
    """Return a distribution (s, j) over 0 to k - 1: padded by zeros, or cut off."""
    missing = k - choice.shape[-1]
    return torch.nn.functional.pad(choice, (0, missing)) if missing > 0 else choice[..., :k]


def certain(numbers: Tensor, k: int) -> Tensor:
    """Return the distribution (s, k) of integers (s) that are known; all zeros for one outside 0 to k - 1."""
    return (numbers.long().unsqueeze(-1) == torch.arange(k, device=numbers.device)).float()


def by_slope(numbers: Tensor, value: Tensor, k: int) -> Tensor:
    """Return the distribution (s, k) of integers (s), with the gradient of `value` (s), the same numbers as floats.

    As the value rises, probability moves from the number below to the number above.
    """
    above, below = certain(numbers + 1, k), certain(numbers - 1, k)
    return certain(numbers, k) + (value - value.detach()).unsqueeze(-1) * (above - below) / 2


def expectation(choice: Tensor) -> Tensor:
    """Return the mean (s) of a distribution (s, k)."""
    return choice @ torch.arange(choice.shape[-1], device=choice.device, dtype=choice.dtype)


def pushed_forward(probabilities: Tensor, numbers: Tensor) -> Tensor | None:
    """Return the distribution (s, k) of integers that have the values `numbers` (s, m) with `probabilities` (s, m).

    None if the numbers are negative or too large.
    """
    # Values that are impossible may lie outside the range.
    numbers = torch.where(probabilities > 0, numbers, 0)
    if not numbers.numel() or int(numbers.min()) < 0:
        return None
    k = int(numbers.max()) + 1
    if k > MOST_VALUES or math.prod(numbers.shape[:-1]) * k > LARGEST:
        return None
    return probabilities.new_zeros((*numbers.shape[:-1], k)).scatter_add(-1, numbers.long(), probabilities)


def soft_ranks(values: Tensor, chosen: Tensor, dim: int, scale: Tensor) -> Tensor | None:
    """Return for each chosen value which value it may be: a softmax over minus their distances (SoftSort, arXiv:2006.16038).

    `values` are (..., n, ...) and `chosen` (..., k, ...) along `dim`. The result is shaped like `chosen`, with n probabilities
    last; None if it would be too large.
    """
    if chosen.numel() * values.shape[dim] > LARGEST:
        return None
    values, scale = values.movedim(dim, -1), scale.expand(values.shape).movedim(dim, -1)
    gaps = (values.unsqueeze(-2) - chosen.movedim(dim, -1).unsqueeze(-1)).abs() / scale.unsqueeze(-2)
    return torch.softmax(-gaps, dim=-1).movedim(-2, dim)
