"""Branch and bound over the undecided units of a system (Bunel et al. 2020, arXiv:1909.06588).

Each branch is bounded by optimised slopes, and its bound leads to an image: the one where the bound's linear function of the
pixels is least. The network's own margin there exceeds the bound by a sum over the units, of what the relaxation of each
loses. A branch is split at a unit that loses most, after a look at the bounds of both halves for the few that lose most
(filtered smart branching, De Palma et al. 2021, arXiv:2104.06718). The images are candidates for adversarial examples
(Zhang et al. 2022, BaB-Attack, ICML).
"""

import heapq
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kwbench.certification.branching import Branches, Splitter
from kwbench.certification.competitions import is_kept
from kwbench.certification.dual import Dual, Problems, Slopes, Trace, Units
from kwbench.certification.effort import Effort, OutOfEffort
from kwbench.certification.leaves import solve_leaf
from kwbench.certification.system import System

# Steps of the optimisation for the whole ball, and for a branch, whose slopes start at those of its parent.
_ROOT_STEPS, _BRANCH_STEPS = 50, 15
# The largest number of float32 values that a batch of branches may hold in one matrix.
_BATCH_VALUES = 400_000
# Choices whose halves are bounded before one of them is taken.
_FILTERED = 4
# The effort of a linear program, in calls.
_LEAF_CALLS = 40
# A search in float32 aims above 0, so that the bound in float64 confirms it.
_SAFETY = 1e-4


@dataclass(frozen=True)
class SearchResult:
    """Lower bounds (r,) of the margins, how many branches were bounded, and the candidate of least margin with this margin."""

    bounds: Tensor
    branches: int
    image: Tensor
    margin: float

    @property
    def certified(self) -> bool:
        """Whether all margins are positive in the whole ball."""
        return bool((self.bounds > 0).all())


class BranchAndBound:
    """Searches a system until all margins are positive, one is not, or time is up."""

    def __init__(self, system: System, effort: Effort | None = None) -> None:
        self.system = system
        self.splitter = Splitter(system)
        self.dual = Dual(system.ball, system.levels, effort or Effort())
        self.rows = system.margins
        columns = system.ball.pixels + system.units
        self.batch = max(4, min(256, _BATCH_VALUES // columns))
        self._best = (torch.inf, system.ball.centre)

    def run(self, deadline: float, *, stop_at: float = 0.0, most_branches: int | None = None) -> SearchResult:
        """Search until `deadline` (time.monotonic), until a candidate has a margin of at most `stop_at`, over so many branches,
        or until the effort ends. Raises OutOfEffort if it does not suffice for the whole ball."""
        count = len(self.rows.constant)
        problems = Problems.of(self.rows, self.system.levels)
        slopes = [Slopes.initial(units.to(torch.float32), count) for units in problems.units]
        if self.system.units:
            slopes = self.dual.optimise(problems, slopes, _ROOT_STEPS, enough=_SAFETY)[1]
        bounds = self.dual.evaluate(problems, slopes)
        whole = self.splitter.whole(torch.arange(count), slopes)
        whole = replace(whole, bound=bounds)
        self._consider(self._trace(whole, [units.to(torch.float32) for units in problems.units]).image, whole.margin)
        closed_bounds = torch.where(bounds > 0, bounds, torch.inf)
        queue = _Queue()
        queue.push(whole, (bounds <= 0).nonzero().squeeze(1))
        branches = count
        while self.system.units and len(queue) and self._best[0] > stop_at and time.monotonic() < deadline:
            if most_branches is not None and branches >= most_branches:
                break
            popped = queue.pop(self.batch)
            try:
                branches += self._advance(popped, queue, closed_bounds)
            except OutOfEffort:
                queue.push(popped, torch.arange(len(popped)))
                break
        for bound, margin in queue.left():
            closed_bounds[margin] = min(float(closed_bounds[margin]), bound)
        return SearchResult(closed_bounds, branches, self._best[1], self._best[0])

    def _advance(self, branches: Branches, queue: "_Queue", closed_bounds: Tensor) -> int:
        """Solve or split branches, note what is proved in `closed_bounds` (r,), queue the rest; return how many it bounded."""
        parents, units = self.splitter.units_of(branches)
        splittable = self.splitter.open(parents).any(dim=1)
        leaves, inner = (~splittable).nonzero().squeeze(1), splittable.nonzero().squeeze(1)
        count = 0
        if len(leaves):
            solved = self._solved(parents.take(leaves), [known.take(leaves) for known in units])
            closed_bounds.scatter_reduce_(0, solved.margin, solved.bound, "amin")
            count += len(solved)
        if len(inner):
            children = self._children(parents.take(inner), [known.take(inner) for known in units])
            proved = children.take((children.bound > 0).nonzero().squeeze(1))
            closed_bounds.scatter_reduce_(0, proved.margin, proved.bound, "amin")
            queue.push(children, (children.bound <= 0).nonzero().squeeze(1))
            count += len(children)
        return count

    def _problems(self, branches: Branches, units: list[Units]) -> Problems:
        margin = branches.margin
        return Problems(self.rows.matrix[margin], (self.rows.constant - self.rows.noise)[margin], units)

    def _trace(self, branches: Branches, units: list[Units]) -> Trace:
        with torch.no_grad():
            return self.dual.bound(self._problems(branches, units).to(torch.float32), branches.slopes)[1]

    def _solved(self, leaves: Branches, units: list[Units]) -> Branches:
        """Bound branches where every unit is decided by linear programs, whose multipliers are the best slopes."""
        self.dual.effort.spend(0, _LEAF_CALLS * len(leaves))
        problems = self._problems(leaves, units)
        solutions = [
            solve_leaf(self.system, int(leaves.margin[row]), [known.take(torch.tensor([row])) for known in units])
            for row in range(len(leaves))
        ]
        slopes = [
            Slopes(*(torch.cat(values) for values in zip(*(free.fields for free in level), strict=True)))
            for level in zip(*(found for _, found in solutions), strict=True)
        ]
        self._consider_images(torch.stack([image for image, _ in solutions]), leaves.margin)
        bounds = torch.maximum(self.dual.evaluate(problems, slopes), leaves.bound)
        return replace(leaves, bound=bounds)

    def _children(self, parents: Branches, units: list[Units]) -> Branches:
        """Split branches and bound their halves."""
        single = [known.to(torch.float32) for known in units]
        trace = self._trace(parents, single)
        values = self._consider(trace.image, parents.margin)
        score = self._losses(trace, values)
        score = score.masked_fill(~self.splitter.open(parents), -torch.inf)
        choice = self._filtered(parents, score)
        halves, units = self.splitter.units_of(self.splitter.split(parents, choice))
        problems = self._problems(halves, units)
        found, slopes = self.dual.optimise(problems, halves.slopes, _BRANCH_STEPS, enough=_SAFETY)
        bounds = found.double()
        promising = (bounds > 0).nonzero().squeeze(1)
        if len(promising):
            chosen = problems.take(promising) if len(promising) < len(problems) else problems
            bounds[promising] = self.dual.evaluate(chosen, [free.take(promising) for free in slopes])
        # The bound of a part is at least that of the whole.
        inherited = parents.bound.repeat(2)
        bounds = torch.maximum(bounds, inherited)
        return replace(halves, bound=bounds, slopes=slopes)

    def _consider(self, coefficients: Tensor, margin: Tensor) -> list[Tensor]:
        """Take the images where the linear functions (p, pixels) are least as candidates, and return the values (p, n) of the
        units of each level there."""
        return self._consider_images(self.system.ball.minimiser(coefficients), margin)

    def _consider_images(self, image: Tensor, margin: Tensor) -> list[Tensor]:
        values, margins = self.system.forward(image)
        own = margins[torch.arange(len(margin)), margin]
        least, row = own.min(dim=0)
        if float(least) < self._best[0]:
            self._best = (float(least), image[row].double())
        return values

    def _losses(self, trace: Trace, values: list[Tensor]) -> Tensor:
        """Return what the relaxation of each choice (p, units + groups) loses at the candidates."""
        units, groups = [], []
        for level, lam, p, q, v in zip(
            self.system.levels, trace.coefficients, trace.slopes, trace.intercepts, values, strict=True
        ):
            kept = is_kept(v, level.groups)
            loss = (lam * v * kept - p * v - q).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
            units.append(loss)
            if level.groups is not None:
                groups.append(level.groups.gathered(loss, 0.0).sum(dim=-1) / 2)
        return torch.cat([*units, *groups], dim=1)

    def _filtered(self, parents: Branches, score: Tensor) -> Tensor:
        """Return the choice (p,) whose worse half has the best bound, of the few of highest score."""
        count = min(_FILTERED, score.shape[1])
        top, candidates = score.topk(count, dim=1)
        if count == 1:
            return candidates[:, 0]
        worse = []
        for place in range(count):
            halves, units = self.splitter.units_of(self.splitter.split(parents, candidates[:, place]))
            single = [known.to(torch.float32) for known in units]
            with torch.no_grad():
                problems = self._problems(halves, single).to(torch.float32)
                slopes = [free.settled(known) for free, known in zip(halves.slopes, single, strict=True)]
                bounds = self.dual.bound(problems, slopes)[0].clamp_max(_SAFETY)
            first, second = bounds.view(2, -1)
            worse.append(torch.minimum(first, second) + 1e-2 * torch.maximum(first, second))
        value = torch.stack(worse, dim=1).masked_fill(top == -torch.inf, -torch.inf)
        return candidates.gather(1, value.argmax(dim=1, keepdim=True)).squeeze(1)


class _Queue:
    """Branches by their bounds, the lowest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._parts: dict[int, tuple[Branches, int]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, branches: Branches, rows: Tensor) -> None:
        """Add the branches `rows`."""
        if not len(rows):
            return
        part = branches.take(rows)
        self._parts[self._number] = (part, len(part))
        for row, bound in enumerate(part.bound.tolist()):
            heapq.heappush(self._heap, (bound, self._number, row))
        self._number += 1

    def pop(self, count: int) -> Branches:
        """Remove and return the `count` branches of lowest bounds, or all."""
        chosen: dict[int, list[int]] = {}
        for _ in range(min(count, len(self._heap))):
            _, number, row = heapq.heappop(self._heap)
            chosen.setdefault(number, []).append(row)
        taken = []
        for number, rows in chosen.items():
            part, left = self._parts[number]
            taken.append(part.take(torch.tensor(rows)))
            if left == len(rows):
                del self._parts[number]
            else:
                self._parts[number] = (part, left - len(rows))
        return Branches.joined(taken)

    def left(self) -> list[tuple[float, int]]:
        """Return the bound and margin of each branch."""
        return [(bound, int(self._parts[number][0].margin[row])) for bound, number, row in self._heap]
