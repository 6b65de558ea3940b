"""Units whose output is their value or zero: ReLU, k-WTA, LWTA and max pooling, and what bounds on the values decide."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Competitions among the units of a layer: in each group exactly `winners` units, those of the largest values, are kept.

    `members` (g, s) are the indices of the units of each group, padded with -1; `winners` is (g,). Groups do not overlap.
    """

    members: Tensor
    winners: Tensor

    @classmethod
    def of(cls, group: Tensor, winners: Tensor) -> "Groups":
        """Build it from the group (n,) of each unit, numbered from 0, and the winners (g,) of each group."""
        counts = torch.bincount(group, minlength=len(winners))
        members = torch.full((len(winners), int(counts.max()) if len(counts) else 0), -1, dtype=torch.long)
        order = group.argsort(stable=True)
        place = torch.arange(len(group)) - (counts.cumsum(0) - counts)[group[order]]
        members[group[order], place] = order
        return cls(members, winners)

    def group_of(self, units: int) -> Tensor:
        """Return the group (n,) of each unit."""
        group = torch.zeros(units, dtype=torch.long)
        rows = torch.arange(len(self.members))[:, None].expand_as(self.members)
        valid = self.members >= 0
        group[self.members[valid]] = rows[valid]
        return group

    def gathered(self, values: Tensor, padding: float) -> Tensor:
        """Return values (..., n) as (..., g, s)."""
        padded = torch.cat([values, values.new_full((*values.shape[:-1], 1), padding)], dim=-1)
        return padded[..., self.members]

    def only(self, chosen: Tensor, winners: Tensor) -> "Groups":
        """Return the competitions among the units `chosen` (n,) of flags, renumbered; groups that become empty disappear."""
        group = self.group_of(len(chosen))[chosen]
        left, renumbered = torch.unique(group, return_inverse=True)
        return Groups.of(renumbered, winners[left])


@dataclass(frozen=True)
class Decision:
    """Which units (n,) are kept for sure and which are dropped for sure."""

    kept: Tensor
    dropped: Tensor

    @property
    def open(self) -> Tensor:
        """Flags of the units that bounds do not decide."""
        return ~(self.kept | self.dropped)


def decide(low: Tensor, high: Tensor, groups: Groups | None) -> Decision:
    """Decide units whose values lie in [low, high] (n,); groups of None are ReLU units.

    A unit is kept for sure if at most winners - 1 others can reach its value, and dropped for sure if `winners` others exceed
    it. Neither depends on how ties are broken.
    """
    if groups is None:
        return Decision(low >= 0, (high <= 0) & (low < 0))
    lows, highs = groups.gathered(low, -torch.inf), groups.gathered(high, -torch.inf)
    # Numbers in ascending order, so that searchsorted counts those below.
    size = groups.members.shape[1]
    reach = size - torch.searchsorted(highs.sort(dim=1).values, lows.contiguous(), right=False)
    above = size - torch.searchsorted(lows.sort(dim=1).values, highs.contiguous(), right=True)
    kept, dropped = torch.zeros_like(low, dtype=torch.bool), torch.zeros_like(low, dtype=torch.bool)
    valid = groups.members >= 0
    winners = groups.winners[:, None]
    kept[groups.members[valid]] = (reach <= winners)[valid]
    dropped[groups.members[valid]] = (above >= winners)[valid]
    dropped &= ~kept
    # Exactly `winners` are kept: where all winners are known the others are dropped, and likewise for the losers.
    group = groups.group_of(len(low))
    full = groups.gathered(kept.long(), 0).sum(dim=1) == groups.winners
    needed = groups.gathered((~dropped).long(), 0).sum(dim=1) == groups.winners
    return Decision(kept | (needed[group] & ~dropped), dropped | (full[group] & ~kept))


def is_kept(values: Tensor, groups: Groups | None) -> Tensor:
    """Return which units (p, n) are kept, given their values (p, n)."""
    if groups is None:
        return values > 0
    ordered = groups.gathered(values, -torch.inf)
    rank = ordered.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    won = rank < groups.winners[:, None]
    kept = torch.zeros_like(values, dtype=torch.bool)
    valid = groups.members >= 0
    kept[:, groups.members[valid]] = won[:, valid]
    return kept


def thresholds(low: Tensor, high: Tensor, groups: Groups | None) -> tuple[Tensor, Tensor]:
    """Return the least value of a unit that is kept, and the largest of one that is dropped, each (..., n).

    With low and high (..., n) of undecided units. A unit that is kept is one of the k largest, hence not below the k-th
    largest lower bound. A unit that is dropped has k others at or above it, hence is not above the k-th largest upper bound of
    the others. Both are 0 for ReLU.
    """
    if groups is None:
        return torch.zeros_like(low), torch.zeros_like(high)
    units = low.shape[-1]
    group = groups.group_of(units)
    k = groups.winners
    lows = groups.gathered(low, -torch.inf).sort(dim=-1, descending=True).values
    highs = groups.gathered(high, -torch.inf).sort(dim=-1, descending=True).values
    size = lows.shape[-1]

    def ranked(values: Tensor, rank: Tensor) -> Tensor:
        index = rank.clamp(0, size - 1).view(*([1] * (values.dim() - 2)), -1, 1).expand(*values.shape[:-1], 1)
        return values.gather(-1, index).squeeze(-1)[..., group]

    floor = ranked(lows, k - 1)
    ceiling, next_ceiling = ranked(highs, k - 1), ranked(highs, k)
    # In a group of no more than k units nobody is dropped.
    next_ceiling = torch.where((k >= size)[group], torch.full_like(next_ceiling, -torch.inf), next_ceiling)
    return floor, torch.where(high >= ceiling, next_ceiling, ceiling)


def windows(channels: int, height: list[list[int]], width: list[list[int]], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the flat indices of all values in the windows of a pooling layer, and the window of each.

    `height` and `width` list the rows and columns of each window; those outside the image `shape` are padding and left out.
    """
    rows, columns = shape
    indices, window = [], []
    for channel in range(channels):
        for i, chosen_rows in enumerate(height):
            for j, chosen_columns in enumerate(width):
                number = (channel * len(height) + i) * len(width) + j
                for row in chosen_rows:
                    for column in chosen_columns:
                        if 0 <= row < rows and 0 <= column < columns:
                            indices.append((channel * rows + row) * columns + column)
                            window.append(number)
    return torch.tensor(indices), torch.tensor(window)


def strided_spans(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> list[list[int]]:
    """Return the positions of each window of max_pool2d along one axis."""
    extent = Fraction(size + 2 * padding - dilation * (kernel - 1) - 1, stride)
    count = (-(-extent.numerator // extent.denominator) if ceil else extent.numerator // extent.denominator) + 1
    if ceil and (count - 1) * stride >= size + padding:
        count -= 1
    return [[i * stride - padding + dilation * step for step in range(kernel)] for i in range(count)]


def adaptive_spans(size: int, count: int) -> list[list[int]]:
    """Return the positions of each window of adaptive pooling along one axis."""
    return [list(range(i * size // count, -(-(i + 1) * size // count))) for i in range(count)]
