"""The base class of gradient estimators."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import ConfigDict
from torch import Tensor

from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Maps logits (b, k) to one or more values a sample, (m, b).
Objective = Callable[[Tensor], Tensor]

# What kind of evidence the success of an attack is: what it was guided by.
EvidenceGroup = Literal["exact", "softened", "gradient-free", "transfer"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """`logits` (b, k) at x, `values` (m, b) of the objective and their `gradients` (m, b, c, h, w) in the pixels, all detached.

    If an estimator draws several times, the values are means over the draws, and so are the logits of `Eot` and `Relaxed`.
    """

    logits: Tensor
    values: Tensor
    gradients: Tensor

    @staticmethod
    def mean(estimates: "Sequence[Estimate]") -> "Estimate":
        """Return the mean of several estimates at the same x."""
        return Estimate(
            logits=torch.stack([estimate.logits for estimate in estimates]).mean(dim=0),
            values=torch.stack([estimate.values for estimate in estimates]).mean(dim=0),
            gradients=torch.stack([estimate.gradients for estimate in estimates]).mean(dim=0),
        )

    def plus(self, values: Tensor, gradients: Tensor) -> "Estimate":
        """Return this estimate with more values and gradients added."""
        return replace(self, values=self.values + values, gradients=self.gradients + gradients)


class Estimator(ABC):
    """Estimates the gradients of an objective in the pixels. Every gradient attack takes any estimator.

    Subclasses are frozen dataclasses whose fields are their parameters, among them the literal `kind` that selects the class in
    YAML. A new estimator is a file in this folder and a line in `kwbench.gradients.ESTIMATORS`. Raise `revision` with every
    change that can change an estimate.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    revision: ClassVar[int] = 1
    # What the success of an attack with this estimator is evidence of.
    evidence_group: ClassVar[EvidenceGroup]
    # Whether the samples of a search must all take the same step together, because random numbers are addressed by the step.
    in_step: ClassVar[bool] = True
    # Whether the estimator adds noise of its own to the gradients of a deterministic model.
    noisy: ClassVar[bool] = False
    # Whether the estimates are good enough in bfloat16 for steps along their signs.
    tolerates_rounding: ClassVar[bool] = False
    # Whether the estimator differs from autograd only where an operation of the model hides its gradient.
    relaxes: ClassVar[bool] = False

    kind: str

    @abstractmethod
    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate the gradients at x (b, c, h, w). `rows` (b,): the positions of the samples in the metered batch."""

    @abstractmethod
    def passes(self, values: int = 1) -> int:
        """Return the largest number of forward and backward passes a sample that an estimate of `values` values costs."""

    def doubled(self, times: int) -> Self | None:
        """Return the estimator with its draws doubled `times` times; None if it has no number of draws to double."""
        return None

    def within(self, threat: ThreatModel, shape: Sequence[int]) -> Self:
        """Return the estimator for images of `shape` (c, h, w) in this ball, with lengths in eps converted to pixel values."""
        return self

    def revisions(self) -> dict[str, int]:
        """Return the revisions of the parts of kwbench that an estimate depends on."""
        return {"gradient": self.revision}
