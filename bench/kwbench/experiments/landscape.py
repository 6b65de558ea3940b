"""The loss surface around an image (xiao2020, arXiv:1905.10510, 4.3, figures 5 and 7; after Tramèr et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional as F

from kwbench.attacks.attack import Length, strict
from kwbench.attacks.search.losses import cross_entropy
from kwbench.experiments.experiment import Subject, numbers
from kwbench.geometry import steepest
from kwbench.gradients import EXACT
from kwbench.randomness import SampleRandom
from kwbench.record.measurement import Array

# xiao2020 sweeps 0.04 at an eps of 0.031.
_BEYOND_EPS = 0.04 / 0.031


@dataclass(frozen=True)
class Landscape:
    """Measure the cross-entropy at x + e1 g1 + e2 g2, for `points` values of e1 and of e2 from -`radius` to `radius`.

    g1 is the direction of the loss gradient at x, g2 a random direction. The paper does not state their length. With `sign`,
    as in Tramèr et al. 2018 (arXiv:1705.07204), both are sign vectors, so that e1 and e2 are linf distances; with `l2` they
    have length 1. Images are not clipped to the pixel range, which would add creases to the surface. A stochastic model is
    evaluated once at each point. If `radius` is None, it is 0.04 / 0.031 times eps.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    default_images: ClassVar[int] = 1

    radius: Length | None = None
    points: int = 50
    directions: Literal["sign", "l2"] = "sign"

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError("points must be at least 2")
        if self.radius is not None and self.radius <= 0:
            raise ValueError("radius must be positive")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """Return `e` (points,), `loss` and `right` (n, points, points) with e1 before e2, and `label` (n,).

        `right` is 1 where the prediction is correct.
        """
        model, batch = subject.model, subject.batch
        rng = SampleRandom(subject.seed, "landscape", batch.samples)
        model.reseed(subject.seed, "landscape", *batch.samples)

        def objective(logits: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(logits, labels)[None]

        rows = torch.arange(len(batch), device=batch.x.device)
        estimate = EXACT(model, batch.x, lambda logits: objective(logits, batch.y), rng, rows)
        norm = "linf" if self.directions == "sign" else "l2"
        first = steepest(estimate.gradients[0], norm)  # type: ignore[arg-type]
        second = steepest(rng.normal("second", batch.x.shape[1:]).to(batch.x), norm)  # type: ignore[arg-type]
        radius = self.radius if self.radius is not None else _BEYOND_EPS * subject.threat.radius
        e = torch.linspace(-radius, radius, self.points, device=batch.x.device)
        losses, correct = [], []
        for row in range(len(batch)):
            x, y = batch.x[row], batch.y[row]
            grid = e.view(-1, 1, 1, 1, 1) * first[row] + e.view(1, -1, 1, 1, 1) * second[row]
            loss, hits = [], []
            for part in torch.split((x + grid).flatten(0, 1), model.tile):
                with torch.no_grad():
                    # In float32 the softmax saturates, which would flatten the valleys.
                    logits = model(part).double()
                labels = y.expand(len(part))
                loss.append(F.cross_entropy(logits, labels, reduction="none"))
                hits.append(logits.argmax(dim=1) == labels)
            losses.append(torch.cat(loss).view(self.points, self.points))
            correct.append(torch.cat(hits).view(self.points, self.points))
        return {
            "e": numbers(e),
            "loss": numbers(torch.stack(losses)),
            "right": numbers(torch.stack(correct)),
            "label": numbers(batch.y),
        }
