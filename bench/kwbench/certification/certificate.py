"""Certify one image: bounds first, then branch and bound within a budget."""

import time
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from kwbench.certification.dual import tightened
from kwbench.certification.graph import Graph
from kwbench.certification.search import BranchAndBound, SearchResult
from kwbench.certification.system import Ball, Reduction, System
from kwbench.threat import ThreatModel

# Raise it with every change that can change whether an image is certified or what a search proposes.
REVISION = 1

# Steps in which the bounds of undecided units are optimised where CROWN's slopes do not certify an image.
TIGHTENING_STEPS = 20


@dataclass(frozen=True)
class Certificate:
    """What is proved about one image.

    `bound` is a lower bound of the margin, the logit of the label less the largest other, over the ball. The image is
    certified if it is positive. `margin` is the smallest margin that the search met, at `image` (c, h, w), in exact
    arithmetic; where it is not positive, the image is a candidate for an adversarial example.
    """

    bound: float
    margin: float
    image: Tensor
    branches: int
    seconds: float

    @property
    def certified(self) -> bool:
        """Whether no image of the ball is misclassified."""
        return self.bound > 0


def certify(graph: Graph, x: Tensor, label: int, threat: ThreatModel, budget: float) -> Certificate:
    """Bound the margin of an image x (c, h, w) from below, within about `budget` seconds.

    Raises CannotEvaluate if too many units are undecided.
    """
    started = time.monotonic()
    system = reduce(graph, x, label, threat, steps=0)
    result = BranchAndBound(system).run(started)
    if not result.certified and result.margin > 0 and time.monotonic() < started + budget:
        system = reduce(graph, x, label, threat, steps=TIGHTENING_STEPS)
        result = _better(BranchAndBound(system).run(started + budget), result)
    return Certificate(
        bound=float(result.bounds.min()),
        margin=result.margin,
        image=result.image.view(x.shape).float(),
        branches=result.branches,
        seconds=time.monotonic() - started,
    )


def reduce(graph: Graph, x: Tensor, label: int, threat: ThreatModel, *, steps: int) -> System:
    """Return the system of a network on the ball around x (c, h, w), its bounds optimised in so many steps."""
    return Reduction(graph, Ball.around(x, threat)).run(label, partial(tightened, steps=steps))


def _better(one: SearchResult, other: SearchResult) -> SearchResult:
    """Return the result of higher bounds, with the smaller margin of both."""
    best = max(one, other, key=lambda result: float(result.bounds.min()))
    least = min(one, other, key=lambda result: result.margin)
    return SearchResult(best.bounds, one.branches + other.branches, least.image, least.margin)
