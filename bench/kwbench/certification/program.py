"""The mixed-integer program of a system (Tjeng et al. 2019, arXiv:1711.07356), solved by HiGHS.

Every undecided unit has a binary: whether it is kept. HiGHS works with tolerances, so that what it proves is no certificate;
what it finds is a candidate for the judge.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from kwbench.certification.system import Level, System

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """The image (pixels,) of least margin that HiGHS found, None if there is none, its margin, and a lower bound of all
    margins in the program; the bound is infinite if the program has no solution."""

    image: Tensor | None
    margin: float
    bound: float


def least_margin(
    system: System,
    margin: int,
    *,
    seconds: float = np.inf,
    nodes: int | None = None,
    decided: Sequence[Tensor] | None = None,
    box: tuple[Tensor, Tensor] | None = None,
) -> Solution:
    """Minimise a margin, by row, over the box of a system's ball.

    `decided` fixes units of each level: 1 for kept, -1 for dropped, 0 for free, each (n,). `box` (low, high) narrows the box
    of the images. The search ends after so many `seconds` or `nodes`. The ball must be linf.
    """
    program = _Program(system, decided)
    low, high = box if box is not None else (system.ball.low, system.ball.high)
    return program.solve(margin, low.numpy(), high.numpy(), seconds, nodes)


class _Program:
    """Variables: the image, the values, outputs and binaries of the units of each level, and a threshold per group."""

    def __init__(self, system: System, decided: Sequence[Tensor] | None) -> None:
        self.system = system
        self.pixels = system.ball.pixels
        self._blocks: list[sparse.coo_matrix] = []
        self._columns: list[npt.NDArray[np.intp]] = []
        self._low: list[Array] = []
        self._high: list[Array] = []
        self._variable_bounds: list[tuple[Array, Array]] = []
        self._integer: list[npt.NDArray[np.int_]] = [np.zeros(self.pixels, dtype=int)]
        self.count = self.pixels
        # Variables that stand for the image and the outputs of units, in the order of a system's columns.
        self.state = np.arange(self.pixels)
        for number, level in enumerate(system.levels):
            fixed = np.zeros(len(level), dtype=int) if decided is None else decided[number].numpy().astype(int)
            self._add_level(level, fixed)

    def _variables(self, low: Array, high: Array, integer: bool = False) -> npt.NDArray[np.intp]:
        new = np.arange(self.count, self.count + len(low))
        self.count += len(low)
        self._variable_bounds.append((low, high))
        self._integer.append(np.full(len(low), int(integer)))
        return new

    def _rows(self, parts: Sequence[tuple[npt.NDArray[np.intp], Array | sparse.csr_matrix]], low: Array, high: Array) -> None:
        """Constrain the sum of the parts, each variables with a matrix (rows, variables), or with a diagonal (rows,)."""
        matrices = [
            sparse.csr_matrix(sparse.diags(values)) if isinstance(values, np.ndarray) else values for _, values in parts
        ]
        self._blocks.append(sparse.coo_matrix(sparse.hstack(matrices)))
        self._columns.append(np.concatenate([columns for columns, _ in parts]))
        self._low.append(low)
        self._high.append(high)

    def _add_level(self, level: Level, fixed: npt.NDArray[np.int_]) -> None:
        count, infinite = len(level), np.full(len(level), np.inf)
        low, high, ones = level.low.numpy(), level.high.numpy(), np.ones(len(level))
        value = self._variables(low, high)
        output = self._variables(np.minimum(low, 0), np.maximum(high, 0))
        kept = self._variables((fixed == 1).astype(float), (fixed != -1).astype(float), integer=True)
        constant = level.constant.numpy()
        self._rows([(self.state, sparse.csr_matrix(level.matrix.numpy())), (value, -ones)], -constant, -constant)
        up, down = np.maximum(high, 0), np.minimum(low, 0)
        # kept = 0: output = 0. kept = 1: output = value.
        self._rows([(output, ones), (kept, -up)], -infinite, np.zeros(count))
        self._rows([(output, ones), (kept, -down)], np.zeros(count), infinite)
        self._rows([(output, ones), (value, -ones), (kept, -down)], -infinite, -down)
        self._rows([(output, ones), (value, -ones), (kept, -up)], -up, infinite)
        if level.groups is None:
            # kept if value > 0.
            self._rows([(value, ones), (kept, -up)], -infinite, np.zeros(count))
            self._rows([(value, ones), (kept, down)], down, infinite)
        else:
            self._compete(level, value, kept)
        self.state = np.concatenate([self.state, output])

    def _compete(self, level: Level, value: npt.NDArray[np.intp], kept: npt.NDArray[np.intp]) -> None:
        """As many winners as there are, and a threshold between winners and losers."""
        groups = level.groups
        assert groups is not None
        low, high, ones = level.low.numpy(), level.high.numpy(), np.ones(len(level))
        group = groups.group_of(len(level)).numpy()
        count = len(groups.winners)
        least = np.array([low[group == number].min() for number in range(count)])
        most = np.array([high[group == number].max() for number in range(count)])
        threshold = self._variables(least, most)
        member = sparse.csr_matrix((ones, (group, np.arange(len(level)))), shape=(count, len(level)))
        winners = groups.winners.numpy().astype(float)
        self._rows([(kept, member)], winners, winners)
        infinite = np.full(len(level), np.inf)
        per_unit = sparse.csr_matrix(member.T)
        # kept: value >= threshold. dropped: value <= threshold.
        over, under = most[group] - low, high - least[group]
        self._rows([(value, ones), (threshold, -per_unit), (kept, -over)], -over, infinite)
        self._rows([(value, ones), (threshold, -per_unit), (kept, -under)], -infinite, np.zeros(len(level)))

    def solve(self, margin: int, low: Array, high: Array, seconds: float, nodes: int | None) -> Solution:
        """Minimise a margin over images in a box."""
        rows = self.system.margins
        objective = np.zeros(self.count)
        objective[self.state] = rows.matrix[margin].numpy()
        bounds = [(low, high), *self._variable_bounds]
        constraints = []
        for block, columns, least, most in zip(self._blocks, self._columns, self._low, self._high, strict=True):
            placed = sparse.csr_matrix((block.data, (block.row, columns[block.col])), shape=(block.shape[0], self.count))
            constraints.append((placed, least, most))
        matrix = sparse.vstack([placed for placed, _, _ in constraints]) if constraints else None
        options: Any = {"time_limit": seconds, "mip_rel_gap": 1e-6}
        if nodes is not None:
            options["node_limit"] = nodes
        with _without_output():
            result = milp(
                objective,
                constraints=None
                if matrix is None
                else LinearConstraint(
                    matrix,
                    np.concatenate([least for _, least, _ in constraints]),
                    np.concatenate([most for _, _, most in constraints]),
                ),
                integrality=np.concatenate(self._integer),
                bounds=Bounds(np.concatenate([least for least, _ in bounds]), np.concatenate([most for _, most in bounds])),
                options=options,
            )
        constant = float(rows.constant[margin])
        if result.x is None:
            # 2: infeasible; otherwise the time was up.
            return Solution(None, np.inf, np.inf if result.status == 2 else -np.inf)
        image = torch.from_numpy(result.x[: self.pixels]).clamp(torch.from_numpy(low), torch.from_numpy(high))
        bound = result.mip_dual_bound if result.mip_dual_bound is not None else result.fun
        return Solution(image, float(result.fun) + constant, float(bound) + constant)


@contextmanager
def _without_output() -> Iterator[None]:
    """Drop what is written to the process's standard output: HiGHS prints there, past Python, whatever its options are."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
