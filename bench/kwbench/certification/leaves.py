"""The linear program of a branch in which every unit is decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kwbench.certification.dual import Slopes, Units
from kwbench.certification.system import System

# What a violation of the order of a unit and its threshold costs. Orders are elastic, so that the program always has a
# solution; multipliers of this size prove that a branch is empty.
_PENALTY = 1e4
# The sum of violations, in units of the logits, from which on a branch is empty.
_VIOLATED = 1e-6
# By how much an image inside a branch may keep all orders.
_MOST_INSIDE = 1.0

Array = npt.NDArray[np.float64]


def solve_leaf(system: System, margin: int, units: Sequence[Units]) -> tuple[Tensor, list[Slopes]]:
    """Return the image (pixels,) of least margin, by row, in a branch (1, n), and the slopes that prove it.

    The box of the ball is all that bounds the image. HiGHS only proposes: the slopes give a valid bound, whatever they are.
    """
    pixels, total = system.ball.pixels, system.units
    passing = torch.cat([known.keep[0].double() for known in units])
    group_counts = [0 if level.groups is None else len(level.groups.winners) for level in system.levels]
    # Variables: the image, the values of all units, a violation of each, and a threshold per competition.
    width = pixels + 2 * total + sum(group_counts)
    equations, orders = [], []
    least = torch.cat(
        [system.ball.low, torch.full((total,), -torch.inf), torch.zeros(total), torch.full((sum(group_counts),), -torch.inf)]
    )
    most = torch.full((width,), torch.inf, dtype=torch.double)
    most[:pixels] = system.ball.high
    column, threshold = 0, pixels + 2 * total
    for level, known, count in zip(system.levels, units, group_counts, strict=True):
        own = torch.arange(len(level))
        equation = torch.zeros((len(level), width), dtype=torch.double)
        equation[:, :pixels] = level.matrix[:, :pixels]
        equation[:, pixels : pixels + column] = level.matrix[:, pixels:] * passing[:column]
        equation[own, pixels + column + own] = -1
        equations.append(equation)
        # sign (value - threshold) >= -violation; the threshold of ReLU units is 0.
        kept = known.keep[0]
        sign = torch.where(kept, 1.0, -1.0).double()
        order = torch.zeros((len(level), width), dtype=torch.double)
        order[own, pixels + column + own] = sign
        order[own, pixels + total + column + own] = 1
        if level.groups is not None:
            group = level.groups.group_of(len(level))
            assert known.threshold is not None
            below, above = (end[0] for end in known.threshold)
            order[own, threshold + group] = -sign
            least[threshold : threshold + count], most[threshold : threshold + count] = below, torch.maximum(below, above)
            # Units that cannot be on the other side of the threshold.
            separate = torch.where(kept, known.low[0] >= above[group], known.high[0] <= below[group])
            order = order[~separate]
            threshold += count
        orders.append(order)
        column += len(level)
    coefficients = system.margins.matrix[margin]
    objective = torch.zeros(width, dtype=torch.double)
    objective[:pixels] = coefficients[:pixels]
    objective[pixels : pixels + total] = coefficients[pixels:] * passing
    objective[pixels + total : pixels + 2 * total] = _PENALTY
    program = _Program(
        -torch.cat(orders).numpy(),
        torch.cat(equations).numpy(),
        -torch.cat([level.constant for level in system.levels]).numpy(),
        torch.stack([least, most], dim=1).numpy(),
    )
    result = program.minimise(objective.numpy())
    if result.x is None:
        return system.ball.centre, [Slopes.initial(known, 1).settled(known) for known in units]
    solution = result.x
    violated = float(solution[pixels + total : pixels + 2 * total].sum()) > _VIOLATED
    least_margin = float(result.fun) + float(system.margins.constant[margin])
    if least_margin < 0 and not violated:
        # At the minimum units tie with their threshold, so that rounding may choose others.
        objective[pixels + total : pixels + 2 * total] = 0
        ceiling = least_margin / 2 - float(system.margins.constant[margin])
        inside = program.inside(objective.numpy(), ceiling, slice(pixels + total, pixels + 2 * total))
        solution = solution if inside is None else inside
    image = torch.from_numpy(solution[:pixels]).clamp(system.ball.low, system.ball.high)
    # The multiplier of the equation of a unit is minus its slope.
    slope = -torch.from_numpy(np.array(result.eqlin.marginals))
    return image, _as_slopes(system, margin, units, slope)


@dataclass(frozen=True)
class _Program:
    """Orders (o, v) times the variables are at most 0, equations (e, v) times them are the constants (e,); bounds (v, 2)."""

    orders: Array
    equations: Array
    constants: Array
    bounds: Array

    def minimise(self, objective: Array) -> Any:
        """Return the result of HiGHS for an objective (v,)."""
        # Searches without leaves do not wait for the import.
        from scipy import sparse
        from scipy.optimize import linprog

        # The type stubs of scipy do not know sparse matrices here.
        upper: Any = sparse.csr_matrix(self.orders)
        equal: Any = sparse.csr_matrix(self.equations)
        limits = np.zeros(len(self.orders))
        return linprog(
            objective, A_ub=upper, b_ub=limits, A_eq=equal, b_eq=self.constants, bounds=self.bounds.tolist(), method="highs"
        )

    def inside(self, margin: Array, ceiling: float, violations: slice) -> Array | None:
        """Return the solution (v,) that keeps all orders by the most, without violations, where the margin (v,) times it is at
        most the ceiling; None if there is none."""
        # One more variable, by which each order is kept, and another that is 1.
        distance = np.ones((len(self.orders), 1))
        orders = np.hstack([self.orders, distance, np.zeros_like(distance)])
        below = np.append(margin, [0.0, -ceiling])[None]
        bounds = np.vstack([self.bounds, [[0.0, _MOST_INSIDE], [1.0, 1.0]]])
        bounds[violations] = 0.0
        equations = np.hstack([self.equations, np.zeros((len(self.equations), 2))])
        objective = np.zeros(len(bounds))
        objective[-2] = -1.0
        result = _Program(np.vstack([orders, below]), equations, self.constants, bounds).minimise(objective)
        solution: Array | None = None if result.x is None else result.x[:-2]
        return solution


def _as_slopes(system: System, margin: int, units: Sequence[Units], slope: Tensor) -> list[Slopes]:
    """Return given slopes (units,) as what is added to those of decided units."""
    lam = system.margins.matrix[margin].clone()
    slopes: list[Slopes] = []
    end = len(lam)
    for level, known in zip(reversed(system.levels), reversed(units), strict=True):
        start = end - len(level)
        own = slope[start - system.ball.pixels : end - system.ball.pixels]
        initial = Slopes.initial(known, 1).settled(known)
        added = (own - lam[start:end] * known.keep[0].double())[None]
        slopes.append(Slopes(initial.rising, initial.falling, added, initial.multiplier))
        lam[:start] += own @ level.matrix
        end = start
    return slopes[::-1]
