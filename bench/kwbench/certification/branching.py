"""Branches of a search: which units of a system are decided, and what follows for the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kwbench.certification.competitions import thresholds
from kwbench.certification.dual import Slopes, Units
from kwbench.certification.system import Level, System

# Among so few undecided units a threshold is not split: their own splits decide them sooner.
_FEW = 8


@dataclass(frozen=True)
class Branches:
    """Parts of the ball (p), each for one margin.

    `decided` (p, units) is 1 for a unit that is kept, -1 for one that is dropped, 0 for an open one. `least` and `most`
    (p, groups) bound the threshold of each competition: its smallest kept value. `margin` (p,) are rows of the margins,
    `bound` (p,) their lower bounds, and `slopes` those that gave the bounds.
    """

    decided: Tensor
    least: Tensor
    most: Tensor
    margin: Tensor
    bound: Tensor
    slopes: Sequence[Slopes]

    def __len__(self) -> int:
        return len(self.margin)

    def take(self, rows: Tensor) -> "Branches":
        """Return the branches `rows`."""
        return Branches(
            self.decided[rows],
            self.least[rows],
            self.most[rows],
            self.margin[rows],
            self.bound[rows],
            [slopes.take(rows) for slopes in self.slopes],
        )

    @classmethod
    def joined(cls, parts: Sequence["Branches"]) -> "Branches":
        """Return all branches of all parts."""
        slopes = [
            Slopes(*(torch.cat(values) for values in zip(*(free.fields for free in level), strict=True)))
            for level in zip(*(part.slopes for part in parts), strict=True)
        ]
        return cls(
            torch.cat([part.decided for part in parts]),
            torch.cat([part.least for part in parts]),
            torch.cat([part.most for part in parts]),
            torch.cat([part.margin for part in parts]),
            torch.cat([part.bound for part in parts]),
            slopes,
        )


class Splitter:
    """The branches of a system. Choices are its units by number, then the thresholds of its competitions."""

    def __init__(self, system: System) -> None:
        self.levels = system.levels
        self.units = system.units
        self.groups = sum(0 if level.groups is None else len(level.groups.winners) for level in system.levels)
        # The value range of a competition, for thresholds without bounds.
        self._root = [Units.of(level) for level in self.levels]

    def whole(self, margins: Tensor, slopes: Sequence[Slopes]) -> Branches:
        """Return one branch, the whole ball, for each of the margins (p,)."""
        count = len(margins)
        infinite = torch.full((count, self.groups), torch.inf)
        decided = torch.zeros((count, self.units), dtype=torch.int8)
        return Branches(decided, -infinite, infinite, margins, torch.full((count,), -torch.inf), slopes)

    def units_of(self, branches: Branches) -> tuple[Branches, list[Units]]:
        """Return the branches with what follows for open units, and what is known of the units of each level."""
        decided, least, most = branches.decided.clone(), branches.least.double().clone(), branches.most.double().clone()
        known = []
        column = group = 0
        for level in self.levels:
            own = slice(column, column + len(level))
            column += len(level)
            if level.groups is None:
                known.append(_relu_units(level, decided[:, own]))
                continue
            groups = slice(group, group + len(level.groups.winners))
            group = groups.stop
            units, decided[:, own], least[:, groups], most[:, groups] = _compete(
                level, decided[:, own], least[:, groups], most[:, groups]
            )
            known.append(units)
        return replace(branches, decided=decided, least=least, most=most), known

    def open(self, branches: Branches) -> Tensor:
        """Return whether each choice (p, units + groups) is open: units that are undecided, and thresholds among many
        such units. Splits of units come to an end, those of thresholds do not."""
        is_open = branches.decided == 0
        thresholds = []
        column = group = 0
        for level in self.levels:
            own = is_open[:, column : column + len(level)]
            column += len(level)
            if level.groups is not None:
                groups = slice(group, group + len(level.groups.winners))
                group = groups.stop
                wide = branches.most[:, groups] - branches.least[:, groups] > 1e-9
                many = level.groups.gathered(own.long(), 0).sum(dim=-1) > _FEW
                thresholds.append(wide & many)
        return torch.cat([is_open, *thresholds], dim=1)

    def split(self, branches: Branches, choice: Tensor) -> Branches:
        """Return both halves of each branch at its choice (p,): first all where the unit is kept, or the threshold is high."""
        rows = torch.arange(len(branches))
        is_unit = choice < self.units
        unit = choice.clamp_max(max(self.units - 1, 0))
        halves = []
        for kept in (True, False):
            decided, least, most = branches.decided.clone(), branches.least.clone(), branches.most.clone()
            decided[rows[is_unit], unit[is_unit]] = 1 if kept else -1
            at, group = rows[~is_unit], (choice - self.units)[~is_unit]
            middle = (least[at, group] + most[at, group]) / 2
            (least if kept else most)[at, group] = middle
            halves.append(replace(branches, decided=decided, least=least, most=most))
        return Branches.joined(halves)


def _relu_units(level: Level, decided: Tensor) -> Units:
    low = torch.where(decided == 1, level.low.clamp_min(0), level.low)
    high = torch.where(decided == -1, level.high.clamp_max(0), level.high)
    zeros = torch.zeros_like(low)
    return Units(low, high, zeros, zeros, decided != -1, decided != 1)


def _compete(level: Level, decided: Tensor, least: Tensor, most: Tensor) -> tuple[Units, Tensor, Tensor, Tensor]:
    """Draw the conclusions of what is decided in competitions.

    With the threshold t of a group, the smallest kept value: kept values are at least t, dropped ones at most t. t lies
    between the k-th largest lower and the k-th largest upper bound, above what is dropped and below what is kept.
    """
    groups = level.groups
    assert groups is not None
    group = groups.group_of(len(level))
    winners = groups.winners
    low, high = level.low.expand(decided.shape), level.high.expand(decided.shape)
    valid = groups.members >= 0

    def count(flags: Tensor) -> Tensor:
        return groups.gathered(flags.long(), 0).sum(dim=-1)

    def ranked(values: Tensor) -> Tensor:
        ordered = groups.gathered(values, -torch.inf).sort(dim=-1, descending=True).values
        index = (winners - 1).clamp_min(0).view(1, -1, 1).expand(len(values), -1, 1)
        return ordered.gather(-1, index).squeeze(-1)

    for _ in range(2):
        kept, dropped = decided == 1, decided == -1
        lowest_kept = groups.gathered(torch.where(kept, high, torch.inf), torch.inf).amin(dim=-1)
        highest_dropped = groups.gathered(torch.where(dropped, low, -torch.inf), -torch.inf).amax(dim=-1)
        least = torch.maximum(torch.maximum(least, ranked(low)), highest_dropped)
        most = torch.minimum(torch.minimum(most, ranked(high)), lowest_kept)
        low = torch.where(kept, torch.maximum(low, least[:, group]), low)
        high = torch.where(dropped, torch.minimum(high, most[:, group]), high)
        is_open = decided == 0
        full, needed = count(kept) == winners, count(kept | is_open) == winners
        drop = is_open & (full[:, group] | (high < least[:, group]))
        keep = is_open & ~drop & (needed[:, group] | (low > most[:, group]))
        decided = torch.where(drop, -1, torch.where(keep, 1, decided)).to(torch.int8)
    assert bool(valid.any())
    impossible = (count(decided == 1) > winners) | (count(decided != -1) < winners) | (least > most)
    possible = ~impossible[:, group]
    # The threshold of a dropped unit among the others is sharper than that of the group.
    ceiling = torch.minimum(thresholds(level.low, level.high, groups)[1].expand(low.shape), most[:, group])
    units = Units(
        low,
        high,
        least[:, group],
        ceiling,
        (decided != -1) & possible,
        (decided != 1) & possible,
        winners.double().expand(len(decided), -1),
        (least, most),
    )
    return units, decided, least, most
