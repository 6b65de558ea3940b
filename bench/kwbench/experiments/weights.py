"""The loss along a line in weight space and along one in image space (xiao2020, arXiv:1905.10510, figure 3 c and theorem 2)."""

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
    """Measure the cross-entropy at `steps` equal steps along two ascent directions.

    The weights move along the gradient of the mean loss, which training descends; each image moves along its own gradient,
    as in an attack. `length` is the l2 distance that the weights move, over the l2 norm of all weights. Images move by eps in
    the threat model's norm and are not clipped to the pixel range. A stochastic network uses the same random numbers at every
    step, so that jumps are not noise.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    default_images: ClassVar[int] = 128

    steps: int = 100
    length: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 1 or self.length <= 0:
            raise ValueError("steps must be at least 1 and length positive")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """Return `place` (steps + 1,), the fraction of the line, `weights` and `images` (n, steps + 1), and `label` (n,).

        `weights` and `images` are the loss of each image along the two lines.

        Raises CannotEvaluate for a network without weights or without a gradient at the images.
        """
        model, batch = subject.model, subject.batch
        # With channels last, oneDNN may write out of bounds (github.com/uxlfoundation/oneDNN/issues/6035).
        layout = torch.contiguous_format
        network = copy.deepcopy(model.module).requires_grad_(True).to(memory_format=layout)  # type: ignore[call-overload]
        parameters = list(network.parameters())
        if not parameters:
            raise CannotEvaluate(f"{model.name}: has no weights to move")
        seed = derived_seed(subject.seed, "weights", *batch.samples)

        def logits(x: Tensor) -> Tensor:
            with seeded_globally(seed):
                return torch.cat([network(part) for part in torch.split(x, model.tile)])

        def losses(x: Tensor) -> Tensor:
            # In float32 the softmax saturates, which would hide differences.
            return F.cross_entropy(logits(x).double(), batch.y, reduction="none")

        x = batch.x.clone(memory_format=layout).requires_grad_(True)
        # The sum has each image's own gradient and, up to a factor, the weight gradient of the mean.

        *by_weight, by_image = torch.autograd.grad(cross_entropy(logits(x), batch.y).sum(), [*parameters, x], allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, by_weight, strict=True)]
        weight_norm = torch.stack([p.detach().norm() for p in parameters]).norm()
        gradient_norm = torch.stack([g.norm() for g in gradients]).norm().clamp_min(1e-30)
        if by_image is None:
            raise CannotEvaluate(f"{model.name}: its loss has no gradient at the images")
        ascent = subject.threat.radius * steepest(by_image, subject.threat.norm)
        start = [p.detach().clone() for p in parameters]
        fractions = torch.linspace(0, 1, self.steps + 1)
        by_moved_weights, by_moved_images = [], []
        with torch.no_grad():
            for fraction in fractions.tolist():
                by_moved_images.append(losses(batch.x + fraction * ascent))
            for fraction in fractions.tolist():
                for parameter, origin, gradient in zip(parameters, start, gradients, strict=True):
                    parameter.copy_(origin + fraction * self.length * weight_norm / gradient_norm * gradient)
                by_moved_weights.append(losses(batch.x))
        return {
            "place": numbers(fractions),
            "weights": numbers(torch.stack(by_moved_weights, dim=1)),
            "images": numbers(torch.stack(by_moved_images, dim=1)),
            "label": numbers(batch.y),
        }
