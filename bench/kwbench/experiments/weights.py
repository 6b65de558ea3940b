"""The loss as the weights move, and as the images do (xiao2020, arXiv:1905.10510, figure 3 c and theorem 2)."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional as F

from kwbench.attacks.attack import strict
from kwbench.attacks.search.losses import cross_entropy
from kwbench.errors import CannotEvaluate
from kwbench.experiments.experiment import Subject, numbers
from kwbench.geometry import steepest
from kwbench.randomness import derived_seed, seeded_globally
from kwbench.record.measurement import Array


@dataclass(frozen=True)
class Weights:
    """The cross-entropy of images in `steps` equal steps along two lines, both uphill: the weights move along the gradient of
    its mean over all images, which training follows downhill, and each image moves along its own gradient, as in an attack.

    `length` is how far the weights move in l2, as a share of their own length; images move by eps in the norm of the ball, and
    are not cut to the pixel range. A random network meets the same randomness at every step, so that what jumps is not noise.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    usual: ClassVar[int] = 128

    steps: int = 100
    length: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 1 or self.length <= 0:
            raise ValueError("steps must be at least 1 and length positive")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """`place` (steps + 1,), the share of the way; `weights` and `images` (n, steps + 1), each image's loss; `label` (n,).

        Raises CannotEvaluate for a network without weights to move, or without a gradient.
        """
        model, batch = subject.model, subject.batch
        # With channels last oneDNN may write beyond its memory (github.com/uxlfoundation/oneDNN/issues/6035).
        first = torch.contiguous_format
        network = copy.deepcopy(model.module).requires_grad_(True).to(memory_format=first)  # type: ignore[call-overload]
        parameters = list(network.parameters())
        if not parameters:
            raise CannotEvaluate(f"{model.name}: has no weights that could move")
        seed = derived_seed(subject.seed, "weights", *batch.samples)

        def logits(x: Tensor) -> Tensor:
            with seeded_globally(seed):
                return torch.cat([network(part) for part in torch.split(x, model.tile)])

        def losses(x: Tensor) -> Tensor:
            # In float64: a softmax that saturates in float32 would hide the rest.
            return F.cross_entropy(logits(x).double(), batch.y, reduction="none")

        x = batch.x.clone(memory_format=first).requires_grad_(True)
        # The gradient of the sum over images: each image's own, and that of the weights.
        *by_weight, by_image = torch.autograd.grad(cross_entropy(logits(x), batch.y).sum(), [*parameters, x], allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, by_weight, strict=True)]
        size = torch.stack([p.detach().norm() for p in parameters]).norm()
        slope = torch.stack([g.norm() for g in gradients]).norm().clamp_min(1e-30)
        if by_image is None:
            raise CannotEvaluate(f"{model.name}: its loss has no gradient at the images")
        ascent = subject.threat.radius * steepest(by_image, subject.threat.norm)
        start = [p.detach().clone() for p in parameters]
        place = torch.linspace(0, 1, self.steps + 1)
        moved, along = [], []
        with torch.no_grad():
            for share in place.tolist():
                along.append(losses(batch.x + share * ascent))
            for share in place.tolist():
                for parameter, origin, gradient in zip(parameters, start, gradients, strict=True):
                    parameter.copy_(origin + share * self.length * size / slope * gradient)
                moved.append(losses(batch.x))
        return {
            "place": numbers(place),
            "weights": numbers(torch.stack(moved, dim=1)),
            "images": numbers(torch.stack(along, dim=1)),
            "label": numbers(batch.y),
        }
