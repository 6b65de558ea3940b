"""Gradients by autograd."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kwbench.gradients.estimator import Estimate, Estimator, Objective
from kwbench.model import Model
from kwbench.randomness import SampleRandom


@dataclass(frozen=True)
class Exact(Estimator):
    """The gradient of autograd, from one pass.

    If no path of differentiable operations leads from the logits to the pixels, autograd raises RuntimeError. With
    `unreachable: zero` the gradient is zero instead, for suites whose other attacks need no gradient.
    """

    evidence_group = "exact"
    in_step = False
    tolerates_rounding = True

    kind: Literal["exact"] = "exact"
    unreachable: Literal["raise", "zero"] = "raise"

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w) with one forward pass, and one backward pass for each of the m values."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()  # the model passes a copy on
            logits = model(leaf, rows)
            values = objective(logits)
            if self.unreachable == "zero":
                values = values + 0 * leaf.flatten(1)[:, 0]
            if len(values) == 1:
                gradients = torch.autograd.grad(values.sum(), leaf)[0][None]
            else:
                gradients = torch.stack(
                    [
                        torch.autograd.grad(value.sum(), leaf, retain_graph=index + 1 < len(values))[0]
                        for index, value in enumerate(values)
                    ]
                )
        return Estimate(logits.detach(), values.detach(), gradients)

    def passes(self, values: int = 1) -> int:
        """See Estimator."""
        return 1 + values
