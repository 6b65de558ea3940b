"""Lower bounds of linear functions on a system, with slopes that are optimised for each function.

For a function with coefficients lam of the outputs y of a level, any slopes p give a valid bound: with the set S of the pairs
(v, y) that a unit can take, lam y >= p v + q for q = min over S of lam y - p v, and p v is linear in what lies before. The
minimum is at a vertex: (low, 0) and (b, 0) for a dropped unit with b = min(high, ceiling), (a, a) and (high, high) for a kept
unit with a = max(low, floor). For ReLU, floor = ceiling = 0; for competitions see `thresholds`. With all slopes at hand this is
CROWN (Zhang et al. 2018, arXiv:1811.00866), with optimised ones alpha-CROWN (Xu et al. 2021, arXiv:2011.13824), and the
slopes of units that a branch has decided are the multipliers of beta-CROWN (Wang et al. 2021, arXiv:2103.06624). All are
points of one Lagrangian dual (Dvijotham et al. 2018, arXiv:1803.06567).

k-WTA and LWTA: in a group of which exactly k units are kept, add mu (number of kept units - k) = 0 for any multiplier mu. A
kept unit then costs lam v + mu instead of lam v, a dropped one 0, and the group -mu k in total. The vertices bound each unit
as before, so that the bound holds for every mu. mu is optimised with the slopes.

The searches run in float32. `Dual.evaluate` in float64, where the noise of a system covers the rounding, is what counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kwbench.certification.competitions import thresholds
from kwbench.certification.effort import Effort
from kwbench.certification.products import Matrix
from kwbench.certification.system import Ball, Level, Rows

# The first rate of Adam, for slopes in [0, 1], and its decay per step.
_RATE, _DECAY = 0.1, 0.97
# Problems that are bounded at once.
_CHUNK = 256
# Problems that are done leave the others once so few of them go on, as a share: to drop them copies the others.
_CROWDED = 0.75


@dataclass(frozen=True)
class Units:
    """What is known of the undecided units of a level in each problem, all (p, n) or (1, n).

    `keep` and `drop` are whether a unit may be kept, and may be dropped. `winners` (p, g) are those still to be found.
    `threshold` bounds the smallest kept value of each group, once a unit of the level is decided: below and above, (p, g).
    """

    low: Tensor
    high: Tensor
    floor: Tensor
    ceiling: Tensor
    keep: Tensor
    drop: Tensor
    winners: Tensor | None = None
    threshold: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, level: Level) -> "Units":
        """Return what the bounds of a level say, as (1, n)."""
        floor, ceiling = thresholds(level.low, level.high, level.groups)
        flags = torch.ones((1, len(level)), dtype=torch.bool)
        winners = None if level.groups is None else level.groups.winners.double()[None]
        return cls(level.low[None], level.high[None], floor[None], ceiling[None], flags, flags, winners)

    def to(self, dtype: torch.dtype) -> "Units":
        """Return it in another precision."""
        winners = None if self.winners is None else self.winners.to(dtype)
        threshold = None if self.threshold is None else (self.threshold[0].to(dtype), self.threshold[1].to(dtype))
        low, high, floor, ceiling = (values.to(dtype) for values in (self.low, self.high, self.floor, self.ceiling))
        return Units(low, high, floor, ceiling, self.keep, self.drop, winners, threshold)

    def take(self, rows: Tensor) -> "Units":
        """Return the problems `rows`."""
        winners = None if self.winners is None else self.winners[rows]
        threshold = None if self.threshold is None else (self.threshold[0][rows], self.threshold[1][rows])
        low, high, floor, ceiling = (values[rows] for values in (self.low, self.high, self.floor, self.ceiling))
        return Units(low, high, floor, ceiling, self.keep[rows], self.drop[rows], winners, threshold)


@dataclass(frozen=True)
class Slopes:
    """The free numbers of a level, per problem: the slope relative to lam where lam >= 0 and where lam < 0, what is added to
    it, each (p, n), and a multiplier per group (p, g)."""

    rising: Tensor
    falling: Tensor
    added: Tensor
    multiplier: Tensor

    @classmethod
    def initial(cls, units: Units, problems: int) -> "Slopes":
        """Return CROWN's choice: the lower line of least area, and the chord above."""
        low, high = units.low, units.high
        chord = torch.where(low < 0, (high / (high - low).clamp_min(1e-12)), torch.ones_like(high)).clamp(0, 1)
        relu = units.winners is None
        rising = (high > -low).to(low) if relu else ((high > -low) & (low < 0)).to(low)
        groups = 0 if units.winners is None else units.winners.shape[1]
        shape = (problems, low.shape[1])
        return cls(
            rising.expand(shape).clone(), chord.expand(shape).clone(), low.new_zeros(shape), low.new_zeros((problems, groups))
        )

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all tensors."""
        return self.rising, self.falling, self.added, self.multiplier

    def take(self, rows: Tensor) -> "Slopes":
        """Return those of the problems `rows`."""
        return Slopes(*(values[rows] for values in self.fields))

    def to(self, dtype: torch.dtype) -> "Slopes":
        """Return it in another precision."""
        return Slopes(*(values.to(dtype) for values in self.fields))

    def settled(self, units: Units) -> "Slopes":
        """Return slopes where a decided unit passes its value or nothing, and only decided units have something added."""
        decided = ~(units.keep & units.drop)
        passing = units.keep.to(self.rising)
        return Slopes(
            torch.where(decided, passing, self.rising),
            torch.where(decided, passing, self.falling),
            self.added * decided,
            self.multiplier,
        )


@dataclass(frozen=True)
class Problems:
    """Functions (p) to be bounded from below: coefficients (p, m), constants (p,), and the units of each level."""

    matrix: Tensor
    constant: Tensor
    units: Sequence[Units]

    @classmethod
    def of(cls, rows: Rows, levels: Sequence[Level]) -> "Problems":
        """Return lower bounds of rows as problems, with what the bounds of the levels say."""
        return cls(rows.matrix, rows.constant - rows.noise, [Units.of(level) for level in levels])

    def to(self, dtype: torch.dtype) -> "Problems":
        """Return them in another precision."""
        return Problems(self.matrix.to(dtype), self.constant.to(dtype), [units.to(dtype) for units in self.units])

    def take(self, rows: Tensor) -> "Problems":
        """Return the problems `rows`; units that all problems share stay shared."""
        units = [units.take(rows) if len(units.low) > 1 or len(self.matrix) == 1 else units for units in self.units]
        return Problems(self.matrix[rows], self.constant[rows], units)

    def __len__(self) -> int:
        return len(self.matrix)


@dataclass(frozen=True)
class Trace:
    """The terms of a bound: per level the coefficients lam, the slopes p and the intercepts q, each (p, n), and the
    coefficients (p, pixels) of the image."""

    coefficients: list[Tensor]
    slopes: list[Tensor]
    intercepts: list[Tensor]
    image: Tensor


class Dual:
    """Bounds on the levels of a system over its ball."""

    def __init__(self, ball: Ball, levels: Sequence[Level], effort: Effort) -> None:
        self.ball = ball
        self.levels = levels
        self.effort = effort
        self._groups = [None if level.groups is None else level.groups.group_of(len(level)) for level in levels]
        self._numbers = {
            dtype: [(Matrix(level.matrix.to(dtype)), level.constant.to(dtype), level.noise.to(dtype)) for level in levels]
            for dtype in (torch.float32, torch.float64)
        }
        self._multiply_adds = sum(matrix.multiply_adds for matrix, _, _ in self._numbers[torch.float32])

    def bound(self, problems: Problems, slopes: Sequence[Slopes]) -> tuple[Tensor, Trace]:
        """Return the bounds (p,) that the slopes give, in the precision of the problems. Raises OutOfEffort."""
        # A backward pass costs as much again, and so does float64.
        passes = 1 + torch.is_grad_enabled() + (problems.matrix.dtype == torch.float64)
        self.effort.spend(passes * len(problems) * self._multiply_adds, passes)
        total = problems.constant
        # By block: the image, then each level.
        blocks = list(torch.split(problems.matrix, [self.ball.pixels, *(len(level) for level in self.levels)], dim=1))
        lams, ps, qs = [], [], []
        numbers = self._numbers[problems.matrix.dtype]
        for index in range(len(self.levels) - 1, -1, -1):
            matrix, constant, noise = numbers[index]
            units, free, group = problems.units[index], slopes[index], self._groups[index]
            lam = blocks.pop()
            p = torch.where(lam >= 0, lam * free.rising, lam * free.falling) + free.added
            ceiling, floor = torch.minimum(units.high, units.ceiling), torch.maximum(units.low, units.floor)
            dropped = torch.minimum(-p * units.low, -p * ceiling)
            kept = torch.minimum((lam - p) * floor, (lam - p) * units.high)
            if group is not None and units.winners is not None:
                kept = kept + free.multiplier[:, group]
                total = total - (free.multiplier * units.winners).sum(dim=1)
            infinity = torch.inf
            q = torch.minimum(dropped.masked_fill(~units.drop, infinity), kept.masked_fill(~units.keep, infinity))
            total = total + self._intercepts(index, units, lam, p, q, free.multiplier) + p @ constant - p.abs() @ noise
            more = torch.split(matrix(p), [block.shape[1] for block in blocks], dim=1)
            blocks = [block + extra for block, extra in zip(blocks, more, strict=True)]
            lams.append(lam)
            ps.append(p)
            qs.append(q)
        (image,) = blocks
        return total + self.ball.least(image), Trace(lams[::-1], ps[::-1], qs[::-1], image)

    def _intercepts(self, index: int, units: Units, lam: Tensor, p: Tensor, q: Tensor, multiplier: Tensor) -> Tensor:
        """Return the sum (p,) of the intercepts of a level.

        Decided units of a competition share its threshold t: a kept unit adds (lam - p) v >= (lam - p) t where lam >= p, a
        dropped one -p v >= -p t where p >= 0. These sum to t times a number, which is least at an end of the range of t. A
        group takes this sum or that of the units by themselves, whichever is larger.
        """
        groups = self.levels[index].groups
        if groups is None or units.threshold is None:
            return q.sum(dim=1)
        least, most = units.threshold
        group = self._groups[index]
        excess = lam - p
        kept, dropped = units.keep & ~units.drop, units.drop & ~units.keep
        kept_shares = kept & (excess >= 0) & (units.low < most[:, group])
        dropped_shares = dropped & (p >= 0) & (units.high > least[:, group])
        # What is left of the intercept without the value: the multiplier of a kept unit.
        bare = torch.where(kept, multiplier[:, group], 0.0)
        separate = torch.where(
            kept & ~kept_shares,
            bare + torch.minimum(excess * units.low, excess * units.high),
            torch.where(dropped, torch.minimum(-p * units.low, -p * units.high), q),
        )
        alone = torch.where(kept_shares, bare, torch.where(dropped_shares, 0.0, separate))
        factor = groups.gathered(torch.where(kept_shares, excess, torch.where(dropped_shares, -p, 0.0)), 0.0).sum(dim=-1)
        shared = groups.gathered(alone, 0.0).sum(dim=-1) + torch.minimum(factor * least, factor * most)
        return torch.maximum(shared, groups.gathered(q, 0.0).sum(dim=-1)).sum(dim=1)

    def evaluate(self, problems: Problems, slopes: Sequence[Slopes]) -> Tensor:
        """Return the bounds (p,) in float64."""
        with torch.no_grad():
            return self.bound(problems.to(torch.float64), [free.to(torch.float64) for free in slopes])[0]

    def optimise(
        self, problems: Problems, slopes: Sequence[Slopes], steps: int, *, enough: float = torch.inf, rate: float = _RATE
    ) -> tuple[Tensor, list[Slopes]]:
        """Climb the bounds in float32 by Adam, each until it exceeds `enough`; return the best (p,) and their slopes."""
        problems = problems.to(torch.float32)
        current = [
            Slopes(*(values.float().clone() for values in free.settled(units).fields))
            for free, units in zip(slopes, problems.units, strict=True)
        ]
        leaves = self._leaves(current)
        moments = [(torch.zeros_like(leaf), torch.zeros_like(leaf)) for leaf in leaves]
        best = torch.full((len(problems),), -torch.inf)
        chosen = [Slopes(*(values.detach().clone() for values in free.fields)) for free in current]
        # The problems that are still climbed.
        rows = torch.arange(len(problems))
        for step in range(steps + 1):
            bounds, _ = self.bound(problems, current)
            with torch.no_grad():
                better = bounds > best[rows]
                best[rows[better]] = bounds[better]
                for free, best_free in zip(current, chosen, strict=True):
                    for values, best_values in zip(free.fields, best_free.fields, strict=True):
                        best_values[rows[better]] = values[better]
            goes_on = (best[rows] <= enough).nonzero().squeeze(1)
            if step == steps or not len(goes_on):
                break
            # A problem without a solution has an infinite bound.
            gradients = torch.autograd.grad(torch.where(bounds.isfinite(), bounds, 0).sum(), leaves, allow_unused=True)
            with torch.no_grad():
                for leaf, gradient, (first, second) in zip(leaves, gradients, moments, strict=True):
                    if gradient is not None:
                        _ascend(leaf, gradient, first, second, step, rate * _DECAY**step)
                for free, units, level in zip(current, problems.units, self.levels, strict=True):
                    if level.groups is None:
                        free.rising.clamp_(0, 1)
                    for values, settled in zip(free.fields, free.settled(units).fields, strict=True):
                        values.copy_(settled)
                if len(goes_on) <= _CROWDED * len(rows):
                    rows, problems = rows[goes_on], problems.take(goes_on)
                    current = [free.take(goes_on) for free in current]
                    moments = [(first[goes_on], second[goes_on]) for first, second in moments]
            leaves = self._leaves(current)
        return best, chosen

    def _leaves(self, slopes: Sequence[Slopes]) -> list[Tensor]:
        """Return the numbers that are optimised, each (p, n), as leaves of autograd's graph."""
        leaves = []
        for free, level in zip(slopes, self.levels, strict=True):
            # The chord is the best slope of an undecided ReLU unit where lam < 0.
            leaves += [free.rising, free.added] if level.groups is None else list(free.fields)
        for leaf in leaves:
            leaf.requires_grad_(True)
        return leaves


def _ascend(leaf: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, rate: float) -> None:
    """Take a step of Adam (Kingma and Ba 2015, arXiv:1412.6980), in place."""
    first.mul_(0.9).add_(gradient, alpha=0.1)
    second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
    scale = (second / (1 - 0.99 ** (step + 1))).sqrt_().add_(1e-12)
    leaf.addcdiv_(first, scale, value=rate / (1 - 0.9 ** (step + 1)))


def tightened(ball: Ball, levels: Sequence[Level], rows: Rows, *, steps: int, effort: Effort) -> tuple[Tensor, Tensor]:
    """Return lower and upper bounds (r,) of rows on levels, with slopes optimised in so many steps."""
    dual = Dual(ball, levels, effort)
    ends = []
    for sign in (1.0, -1.0):
        signed = Problems.of(Rows(sign * rows.matrix, sign * rows.constant, rows.noise), levels)
        bounds = []
        for part in torch.split(torch.arange(len(signed)), _CHUNK):
            problems = signed.take(part)
            slopes = [Slopes.initial(units, len(problems)) for units in problems.units]
            if steps:
                # Whether a unit may change its sign is all that counts.
                slopes = dual.optimise(problems, slopes, steps, enough=0.0)[1]
            bounds.append(dual.evaluate(problems, slopes))
        ends.append(sign * torch.cat(bounds))
    return ends[0], ends[1]
