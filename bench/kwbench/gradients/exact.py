"""Gradients by autograd."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kwbench.geometry import finite_slopes
from kwbench.gradients.estimator import Estimate, Estimator, Objective
from kwbench.model import Model
from kwbench.randomness import SampleRandom

# What torch raises where no graph leads from the logits back to the pixels.
_NO_GRAPH = ("does not require grad", "not have been used in the graph")


class CutGradientError(RuntimeError):
    """No path of differentiable operations leads from the logits to the pixels."""

    def __init__(self) -> None:
        super().__init__(
            "no gradient reaches the pixels: forward runs under no_grad or inference_mode, detaches, or leaves PyTorch; "
            "--suite strong softens what hides it, and searches without gradients"
        )


@dataclass(frozen=True)
class Exact(Estimator):
    """The gradient of autograd, from one pass.

    If no path of differentiable operations leads from the logits to the pixels, it raises CutGradientError. With
    `unreachable: zero` the gradient is zero instead, for suites whose other attacks need no gradient. Entries that are NaN or
    infinite are replaced (see `finite_slopes`).
    """

    evidence_group = "exact"
    revision = 2
    in_step = False
    tolerates_rounding = True

    kind: Literal["exact"] = "exact"
    unreachable: Literal["raise", "zero"] = "raise"

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w) with one forward pass, and one backward pass for each of the m values."""
        estimate = autograd_estimate(model, x, objective, rows, unreachable=self.unreachable)
        return replace(estimate, gradients=finite_slopes(estimate.gradients.flatten(0, 1)).view_as(estimate.gradients))

    def passes(self, values: int = 1) -> int:
        """See Estimator."""
        return 1 + values


def autograd_estimate(
    model: Model,
    x: Tensor,
    objective: Objective,
    rows: Tensor | None = None,
    *,
    unreachable: Literal["raise", "zero"] = "raise",
) -> Estimate:
    """Return the gradients of autograd at x (b, c, h, w) as they are, NaN and infinity included.

    If the model refuses `torch.autograd.grad`, as reentrant checkpointing does, it passes once more and gets `backward`.
    `unreachable` as in Exact.
    """
    try:
        return _estimate(model, x, objective, rows, unreachable, by_backward=False)
    except RuntimeError as failure:
        if any(text in str(failure) for text in _NO_GRAPH):
            raise CutGradientError from failure
        if "checkpoint" not in str(failure):
            raise
    return _estimate(model, x, objective, rows, unreachable, by_backward=True)


def _estimate(
    model: Model, x: Tensor, objective: Objective, rows: Tensor | None, unreachable: str, *, by_backward: bool
) -> Estimate:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()  # the model passes a copy on
        logits = model(leaf, rows)
        values = objective(logits)
        if unreachable == "zero":
            values = values + 0 * leaf.flatten(1)[:, 0]
        gradients = [
            _gradient(value.sum(), leaf, keep_graph=index + 1 < len(values), by_backward=by_backward)
            for index, value in enumerate(values)
        ]
    return Estimate(logits.detach(), values.detach(), torch.stack(gradients) if len(values) > 1 else gradients[0][None])


def _gradient(value: Tensor, leaf: Tensor, *, keep_graph: bool, by_backward: bool) -> Tensor:
    """Return the gradient of a value in the leaf; zero where the graph does not lead to it and `backward` computes it."""
    if not by_backward:
        return torch.autograd.grad(value, leaf, retain_graph=keep_graph)[0]
    leaf.grad = None
    torch.autograd.backward(value, retain_graph=keep_graph)
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
