"""The logits along an attack (xiao2020, arXiv:1905.10510, figure 3 a and b)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict

from kwbench.attacks.attack import Length, strict
from kwbench.attacks.search.ascent import Ascent
from kwbench.experiments.experiment import Subject, numbers
from kwbench.geometry import distance
from kwbench.gradients import EXACT
from kwbench.randomness import SampleRandom
from kwbench.record.measurement import Array


@dataclass(frozen=True)
class Logits:
    """Record the logits of every iterate of untargeted PGD without a random start or early exit.

    `step_size` is in the unit of the norm. None means eps / steps: the perturbation then grows until the last step, as in
    the paper, whose x-axis is both the step and the size of the perturbation.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    default_images: ClassVar[int] = 1

    steps: int = 100
    step_size: Length | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError("step_size must be positive")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """Return `logits` (n, steps + 1, classes), `distance` (n, steps + 1) in the threat model's norm, and `label` (n,)."""

        model, batch, threat = subject.model, subject.batch, subject.threat
        rng = SampleRandom(subject.seed, "logits", batch.samples)
        model.reseed(subject.seed, "logits", *batch.samples)
        size = self.step_size if self.step_size is not None else threat.radius / self.steps
        step = Ascent(1, size, "cross_entropy", EXACT, early_exit=False)
        rows = torch.arange(len(batch), device=batch.x.device)
        z, logits, distances = batch.x.clone(), [], []
        for number in range(self.steps + 1):
            with torch.no_grad():
                logits.append(model(z))
            distances.append(distance(batch.x, z, threat.norm))
            if number < self.steps:
                z, _ = step(model, batch.x, batch.y, threat, rng.child(number), start=z, rows=rows)
        return {
            "logits": numbers(torch.stack(logits, dim=1)),
            "distance": numbers(torch.stack(distances, dim=1)),
            "label": numbers(batch.y),
        }
