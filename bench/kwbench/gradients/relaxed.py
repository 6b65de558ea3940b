"""Autograd with soft gradients for operations that hide theirs (BPDA; Athalye et al. 2018, arXiv:1802.00420)."""

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal, Self

from torch import Tensor

from kwbench import relaxation
from kwbench.gradients.estimator import Estimate, Estimator, Objective
from kwbench.gradients.exact import Exact
from kwbench.model import Model
from kwbench.model.forward import ForwardFunction
from kwbench.randomness import SampleRandom
from kwbench.relaxation import relaxed_pass

# Chosen among 0.03 to 10 on k-WTA and LWTA networks, deterministic and stochastic, plain and adversarially trained. On a
# stochastic model anything from 0.5 to 2 does as well.
_SOFTNESS, _SOFTNESS_IN_NOISE = 0.3, 1.0


@dataclass(frozen=True)
class Relaxed(Estimator):
    """Autograd through the unmodified forward pass, with soft gradients for the operations that hide theirs.

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv:1802.00420), found automatically for any module: see
    `kwbench.relaxation`. `softness` multiplies scales that are taken from the data. `auto` is 0.3, or 1 for a stochastic model,
    whose own noise already smooths much of it.
    """

    evidence_group = "softened"
    revision = 2
    relaxes = True

    kind: Literal["relaxed"] = "relaxed"
    softness: float | Literal["auto"] = "auto"
    draws: int = 1
    unreachable: Literal["raise", "zero"] = "raise"

    def __post_init__(self) -> None:
        if self.draws < 1 or (self.softness != "auto" and self.softness <= 0):
            raise ValueError(f"draws: {self.draws} and softness: {self.softness} must be positive")

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). A draw costs one forward pass and a backward pass for each of the m values, and a second
        forward pass if gradients that leave PyTorch must be guessed."""
        softness = self.softness
        if softness == "auto":
            softness = _SOFTNESS_IN_NOISE if model.stochastic else _SOFTNESS
        with model.replacing_forward(_pass_of(softness), may_be_tried=True):
            exact = Exact(unreachable=self.unreachable)
            return Estimate.mean([exact(model, x, objective, rng, rows) for _ in range(self.draws)])

    def passes(self, values: int = 1) -> int:
        """See Estimator."""
        return self.draws * (2 + values)

    def doubled(self, times: int) -> Self | None:
        """See Estimator; a single draw is not a number of draws that was chosen."""
        return None if self.draws == 1 else replace(self, draws=self.draws * 2**times)

    def revisions(self) -> dict[str, int]:
        """See Estimator."""
        return {**super().revisions(), "relaxation": relaxation.REVISION}


@cache
def _pass_of(softness: float) -> ForwardFunction:
    return partial(relaxed_pass, softness=softness)
