"""Search for adversarial examples of piecewise linear networks among the units that the ball leaves undecided."""

import copy
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack, ModelFacts
from kwbench.certification import certificate, trace
from kwbench.certification.certificate import reduce
from kwbench.certification.climbing import SLOPES, Climber
from kwbench.certification.effort import Effort, OutOfEffort, affordable, pass_seconds
from kwbench.certification.graph import Graph
from kwbench.certification.search import BranchAndBound, SearchResult
from kwbench.certification.system import Reduction, System
from kwbench.errors import CannotEvaluate
from kwbench.gradients import EvidenceGroup
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# A margin in exact arithmetic, in units of the logits, that float32 confirms.
_CLEAR = 1e-4
# The passes through a network that a search of it is worth.
_WORTH = 1000
# The share of the effort for branches before the climbs.
_FIRST = 0.25
# A program that ends at its nodes, not at a time, proposes the same image on every machine.
_NODES = 200


@dataclass(frozen=True)
class CompleteSearch(Attack):
    """Climb with the slopes of relaxations, branch and bound, then solve mixed-integer programs around the best images.

    For networks of known piecewise linear layers. The units that the ball decides are folded into matrices, see
    `kwbench.certification.system`. On what remains, a few branches first; then `restarts` climbs of `steps` steps for each of
    the `targets` nearest classes and each kind of slope (`kwbench.certification.climbing`); then branch and bound, whose
    relaxations propose images (Zhang et al. 2022, BaB-Attack, ICML), over at most `branches` branches; then large neighbourhood
    search: mixed-integer programs on `neighbourhoods` growing boxes around the best image, in which few units are undecided.
    The search for a sample ends at its first adversarial image, or once it has spent its `effort`, in nominal seconds (see
    `kwbench.certification.effort`); `auto` is what 1000 passes through the network cost. It proposes the image itself for a
    network that it does not know.
    """

    revision: ClassVar[int] = 2

    norms = frozenset({"linf"})
    needs = "gradients"

    steps: int = 100
    restarts: int = 100
    targets: int = 2
    branches: int = 0
    neighbourhoods: int = 0
    effort: float | int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.branches < 0 or self.neighbourhoods < 0:
            raise ValueError("branches and neighbourhoods must not be negative")
        if isinstance(self.effort, float | int) and self.effort < 0:
            raise ValueError("effort must not be negative")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        z = x.clone()
        if model.stochastic:
            return z
        try:
            graph = trace(copy.deepcopy(model.module).cpu(), model.shape)
        except CannotEvaluate:
            return z
        seconds = (
            affordable(_WORTH * pass_seconds(graph))
            if self.effort == "auto"
            else math.inf
            if self.effort is None
            else self.effort
        )
        for row in range(len(x)):
            try:
                image = self._search(graph, x[row].cpu(), int(y[row]), threat, rng.take([row]), Effort(seconds))
            except CannotEvaluate:
                # Too many units are undecided, or the effort does not even suffice to find out.
                continue
            z[row] = image.to(z)
        return z

    @property
    def evidence_group(self) -> EvidenceGroup:
        """See Attack; the climbs follow the slopes of relaxations."""
        return "softened"

    def revisions(self) -> dict[str, int]:
        """See Attack."""
        return {**super().revisions(), "certification": certificate.REVISION}

    def passes(self, stochastic: bool) -> int:
        """See Attack: none of the model's, since the search runs on matrices of its own."""
        return 0

    def doubled(self, times: int) -> Self:
        """See Attack: more restarts, branches and effort."""
        effort = self.effort * 2**times if isinstance(self.effort, float | int) else self.effort
        return replace(self, restarts=self.restarts * 2**times, branches=self.branches * 2**times, effort=effort)

    def resolved(self, facts: ModelFacts) -> Self:
        """See Attack."""
        return replace(self, effort=affordable(_WORTH * facts.prospects.pass_seconds)) if self.effort == "auto" else self

    def redundant(self, facts: ModelFacts) -> str | None:
        """See Attack."""
        return "its effort is 0" if self.effort == 0 else facts.prospects.hopeless

    def _search(self, graph: Graph, x: Tensor, label: int, threat: ThreatModel, rng: SampleRandom, effort: Effort) -> Tensor:
        # The judge's tolerance is for certificates; proposals keep to eps.
        system = reduce(graph, x, label, threat, steps=0, effort=effort)
        system = replace(system, ball=system.ball.without_tolerance())
        # Branches soon settle what is easy, and climbs find more than branches where units are many.
        first = self._branch(system, effort.part(_FIRST))
        if first is not None and (first.certified or first.margin <= -_CLEAR):
            return first.image.float().view(x.shape) if not first.certified else x
        image, margin, least = self._climb(system, rng, effort)
        last = self._branch(system, effort) if least > -_CLEAR else None
        for result in (first, last):
            if result is not None and result.margin < least:
                image, least = result.image.float(), result.margin
        for index in range(self.neighbourhoods):
            if least <= -_CLEAR:
                break
            image, least = _neighbour(graph, system, image, label, margin, least, threat.radius * (index + 1) / 20)
        return image.view(x.shape)

    def _branch(self, system: System, effort: Effort) -> SearchResult | None:
        """Return the result of branch and bound, if it is asked for and the effort suffices."""
        if self.branches:
            with suppress(OutOfEffort):
                return BranchAndBound(system, effort).run(math.inf, stop_at=-_CLEAR, most_branches=self.branches)
        return None

    def _climb(self, system: System, rng: SampleRandom, effort: Effort) -> tuple[Tensor, int, float]:
        """Return the best image (pixels,), the margin that it lowers, by row, and this margin."""
        climber = Climber(system, effort)
        low, high = system.ball.low.float(), system.ball.high.float()
        rows = system.margins.constant.numel()
        every = torch.arange(rows).repeat_interleave(_SCOUTS)
        starts = self._starts(rng.child("scouts"), len(every), low, high)
        images, found = climber.climb(starts, every, "leaky", max(1, self.steps // 3))
        nearest = found.view(rows, _SCOUTS).amin(dim=1).argsort()[: self.targets]
        index = int(found.argmin())
        best = images[index], int(every[index]), float(found[index])
        for target in nearest.tolist():
            for slope in SLOPES:
                if best[2] <= -_CLEAR:
                    return best
                restarts = climber.affordable(self.restarts, self.steps)
                if not restarts:
                    return best
                starts = self._starts(rng.child(f"{target} {slope}"), restarts, low, high)
                images, found = climber.climb(starts, torch.full((restarts,), target), slope, self.steps)
                index = int(found.argmin())
                if float(found[index]) < best[2]:
                    best = images[index], target, float(found[index])
        return best

    def _starts(self, rng: SampleRandom, count: int, low: Tensor, high: Tensor) -> Tensor:
        return low + (high - low) * rng.uniform("start", (count, len(low)))[0]


# Climbs towards each class that choose the targets.
_SCOUTS = 8


def _neighbour(
    graph: Graph, system: System, image: Tensor, label: int, margin: int, least: float, radius: float
) -> tuple[Tensor, float]:
    """Return a better image (pixels,) in a box around one, with its margin; the same if there is none."""
    # Searches without programs do not wait for the import of HiGHS.
    from kwbench.certification.program import least_margin

    middle, whole = image.double(), system.ball
    ball = replace(whole, low=torch.maximum(whole.low, middle - radius), high=torch.minimum(whole.high, middle + radius))
    near = Reduction(graph, ball).run(label, _unimproved)
    solution = least_margin(near, margin, nodes=_NODES)
    if solution.image is None:
        return image, least
    found = float(near.forward(solution.image[None])[1][0, margin])
    return (solution.image.float(), found) if found < least else (image, least)


def _unimproved(*of: Any) -> tuple[Tensor, Tensor]:
    rows = of[2].constant
    return torch.full_like(rows, -torch.inf), torch.full_like(rows, torch.inf)
