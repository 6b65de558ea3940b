"""Which operations of the model hide gradients, and which ones did the relaxation not see?"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from kwbench.checks.case import Case
from kwbench.finding import Check, Criterion, Finding
from kwbench.geometry import norms
from kwbench.gradients import EXACT, CutGradientError, Relaxed
from kwbench.model import Model, fill_tile
from kwbench.randomness import SampleRandom, derived_seed
from kwbench.relaxation.survey import Survey, survey

# The images whose forward pass is surveyed, and how many operations a statement names.
_SURVEYED = 8
NAMED = 6

# How far autograd's gradient may differ from that of the operations that ran, relative to its length. They are the same sums.
_ROUNDING = 0.1

RELAXED_OPERATIONS = Criterion("relaxed operations", kind="note", revision=2)
UNSEEN = Criterion(
    "unseen",
    kind="doubt",
    role="unseen",
    remedy="an attack that knows the operations that could not be seen, or a model written with operations that can be",
    revision=2,
)


def surveyed(model: Model, x: Tensor, seed: int = 0) -> Survey:
    """Survey the first few of these images (b, c, h, w), or a whole tile if the module accepts nothing less.

    Raises whatever the module raises.
    """
    try:
        return survey(model.module, x[:_SURVEYED], seed)
    except Exception:  # noqa: BLE001 - foreign modules may raise anything
        return survey(model.module, fill_tile(x, model.tile), seed)


def autograd_is_exact(model: Model, x: Tensor, seed: int = 0) -> bool:
    """Return whether autograd gives the gradients of the operations that run on the first few of these images (b, c, h, w).

    It does not where the graph is cut, as by `no_grad`, where a backward pass is replaced, or where a slope is infinite. Only
    meaningful if no operation is relaxed.
    """
    few = x[:_SURVEYED]
    # Without the padding to a tile, which would take several times as long.
    small = Model(model.module, name=model.name, classes=model.classes, shape=model.shape, device=model.device, tile=len(few))
    small.stochastic = model.stochastic
    try:
        return _agrees(small, few, seed)
    except Exception:  # noqa: BLE001 - a module may refuse so few images
        return _agrees(model, few, seed)


def _agrees(model: Model, x: Tensor, seed: int) -> bool:
    rng = SampleRandom(seed, "exactness", ("",) * len(x))

    def weighted(logits: Tensor) -> Tensor:
        weights = torch.arange(1, logits.shape[1] + 1, device=logits.device).cos()
        return torch.where(logits.isfinite(), logits * weights, 0).sum(dim=1)[None]

    gradients = []
    for estimator in (EXACT, Relaxed()):
        model.reseed(seed, "exactness")
        try:
            gradients.append(estimator(model, x, weighted, rng).gradients[0])
        except CutGradientError:
            return False
    exact, relaxed = gradients
    return bool((norms(exact - relaxed, "l2") <= _ROUNDING * norms(relaxed, "l2")).all())


def operations_are_seen(case: Case) -> list[Finding]:
    """Report operations whose gradients had to be relaxed, and those that the relaxation did not see."""
    operations = surveyed(case.model, case.batch.x, derived_seed(case.seed, "survey"))
    counts = Counter(relaxed.operation for relaxed in operations.relaxed)
    named = [f"{name}{f' in {count} places' if count > 1 else ''}" for name, count in counts.items()]
    if not named and not operations.unseen and not autograd_is_exact(case.model, case.batch.x, case.seed):
        named = [
            "autograd itself, whose graph is cut, as by no_grad, whose backward pass is replaced, or whose slope is infinite"
        ]
    relaxed, unseen = len(named), len(operations.unseen)
    return [
        RELAXED_OPERATIONS.finding(
            float(relaxed),
            0.0,
            f"operations with relaxed gradients: {_listed(named)}" if named else "no operation hides its gradient",
        ),
        UNSEEN.finding(
            float(unseen),
            0.0,
            f"not seen by the relaxation: {_listed(operations.unseen)}" if unseen else "the relaxation sees every operation",
        ),
    ]


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more


OPERATIONS = Check("operations", operations_are_seen, (RELAXED_OPERATIONS, UNSEEN), passes=1, always=True)
