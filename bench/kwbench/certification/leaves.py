"""The linear program of a branch in which every unit is decided."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kwbench.certification.dual import Slopes, Units
from kwbench.certification.system import System

# What a violation of the order of a unit and its threshold costs. Orders are elastic, so that the program always has a
# solution; multipliers of this size prove that a branch is empty.
_PENALTY = 1e4


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
    inequalities = -torch.cat(orders)
    # Searches without leaves do not wait for the import.
    from scipy import sparse
    from scipy.optimize import linprog

    # The type stubs of scipy do not know sparse matrices here.
    upper: Any = sparse.csr_matrix(inequalities.numpy())
    equal: Any = sparse.csr_matrix(torch.cat(equations).numpy())
    result = linprog(
        objective.numpy(),
        A_ub=upper,
        b_ub=np.zeros(len(inequalities)),
        A_eq=equal,
        b_eq=-torch.cat([level.constant for level in system.levels]).numpy(),
        bounds=[(float(low), float(high)) for low, high in zip(least, most, strict=True)],
        method="highs",
    )
    if result.x is None:
        return system.ball.centre, [Slopes.initial(known, 1).settled(known) for known in units]
    image = torch.from_numpy(result.x[:pixels]).clamp(system.ball.low, system.ball.high)
    # The multiplier of the equation of a unit is minus its slope.
    slope = -torch.from_numpy(np.array(result.eqlin.marginals))
    return image, _as_slopes(system, margin, units, slope)


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
