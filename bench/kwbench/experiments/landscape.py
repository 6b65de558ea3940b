"""The attacker's loss around an image (xiao2020, arXiv:1905.10510, 4.3, figures 5 and 7; after Tramèr et al. 2018)."""

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
    """The cross-entropy at x + e1 g1 + e2 g2, on `points` values of e1 and e2 each from -`radius` to `radius`.

    g1 is the direction of the loss's gradient at x and g2 a random one. The paper does not say how long they are; with `sign`,
    as in Tramèr et al. 2018 (arXiv:1705.07204), both are signs, so that e1 and e2 are in the unit of a linf ball, and with `l2`
    they have length 1. Images are not cut to the pixel range, which would put creases into the picture.
    A random model answers each point with one pass.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    usual: ClassVar[int] = 1

    radius: Length | None = None
    points: int = 50
    directions: Literal["sign", "l2"] = "sign"

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError("points must be at least 2")
        if self.radius is not None and self.radius <= 0:
            raise ValueError("radius must be positive")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """`e` (points,); `loss` and `right` (n, points, points), along e1, then e2; `label` (n,)."""
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
        losses, right = [], []
        for row in range(len(batch)):
            x, y = batch.x[row], batch.y[row]
            grid = e.view(-1, 1, 1, 1, 1) * first[row] + e.view(1, -1, 1, 1, 1) * second[row]
            loss, hit = [], []
            for part in torch.split((x + grid).flatten(0, 1), model.tile):
                with torch.no_grad():
                    # In float64: a softmax that saturates in float32 would cut the valleys flat.
                    logits = model(part).double()
                labels = y.expand(len(part))
                loss.append(F.cross_entropy(logits, labels, reduction="none"))
                hit.append(logits.argmax(dim=1) == labels)
            losses.append(torch.cat(loss).view(self.points, self.points))
            right.append(torch.cat(hit).view(self.points, self.points))
        return {
            "e": numbers(e),
            "loss": numbers(torch.stack(losses)),
            "right": numbers(torch.stack(right)),
            "label": numbers(batch.y),
        }
