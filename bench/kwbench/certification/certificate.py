"""Certify one image: bounds first, then branch and bound within a budget."""

import copy
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from kwbench.certification.dual import tightened
from kwbench.certification.effort import Effort, OutOfEffort, pass_seconds
from kwbench.certification.graph import Graph, trace
from kwbench.certification.search import BranchAndBound, SearchResult
from kwbench.certification.system import Ball, Reduction, System
from kwbench.errors import CannotEvaluate
from kwbench.threat import ThreatModel

# Raise it with every change that can change whether an image is certified or what a search proposes.
REVISION = 3

# Units that intervals may leave undecided. Bounds of networks with more are vacuous, and take long.
_HOPELESS = 4000

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


def certify(
    graph: Graph, x: Tensor, label: int, threat: ThreatModel, budget: float = math.inf, effort: Effort | None = None
) -> Certificate:
    """Bound the margin of an image x (c, h, w) from below, within about `budget` seconds, and within an effort.

    A budget makes what is proved depend on the machine, an effort does not. Raises CannotEvaluate if too many units are
    undecided, and OutOfEffort if the effort does not suffice for any bound.
    """
    started = time.monotonic()
    effort = effort or Effort()
    result = BranchAndBound(reduce(graph, x, label, threat, steps=0, effort=effort), effort).run(started)
    if not result.certified and result.margin > 0 and time.monotonic() < started + budget:
        # What is bounded already stays.
        with suppress(OutOfEffort):
            system = reduce(graph, x, label, threat, steps=TIGHTENING_STEPS, effort=effort)
            result = _better(BranchAndBound(system, effort).run(started + budget), result)
    return Certificate(
        bound=float(result.bounds.min()),
        margin=result.margin,
        image=result.image.view(x.shape).float(),
        branches=result.branches,
        seconds=time.monotonic() - started,
    )


def reduce(graph: Graph, x: Tensor, label: int, threat: ThreatModel, *, steps: int, effort: Effort | None = None) -> System:
    """Return the system of a network on the ball around x (c, h, w), its bounds optimised in so many steps.

    Raises CannotEvaluate as `Reduction.run` does.
    """
    effort = effort or Effort()
    return Reduction(graph, Ball.around(x, threat), effort).run(label, partial(tightened, steps=steps, effort=effort))


@dataclass(frozen=True)
class Prospects:
    """Why a complete search of a network's balls is `hopeless`, None if it may pay, and the nominal seconds of a pass.

    `sigma` is the standard deviation of Gaussian noise on the network's input that it declares, if it does.
    """

    hopeless: str | None
    pass_seconds: float = 0.0
    sigma: float | None = None


def prospects(module: nn.Module, x: Tensor, threat: ThreatModel) -> Prospects:
    """Return the prospects of searches of the balls around images x (b, c, h, w).

    It takes milliseconds: nothing but intervals is computed.
    """
    try:
        graph = trace(copy.deepcopy(module).cpu(), tuple(x.shape[1:]))
    except CannotEvaluate as failure:
        return Prospects(str(failure).removeprefix("not certified: "))
    except Exception as failure:  # noqa: BLE001 - foreign modules may refuse to be copied
        return Prospects(f"the network cannot be copied ({type(failure).__name__})")
    undecided = min(Reduction(graph, Ball.around(image, threat)).undecided_by_intervals() for image in x.cpu())
    hopeless = f"the ball leaves {undecided} units undecided, more than {_HOPELESS}" if undecided > _HOPELESS else None
    return Prospects(hopeless, pass_seconds(graph))


def _better(one: SearchResult, other: SearchResult) -> SearchResult:
    """Return the result of higher bounds, with the smaller margin of both."""
    best = max(one, other, key=lambda result: float(result.bounds.min()))
    least = min(one, other, key=lambda result: result.margin)
    return SearchResult(best.bounds, one.branches + other.branches, least.image, least.margin)
