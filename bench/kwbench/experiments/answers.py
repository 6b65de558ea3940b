"""What a model makes of images and of what attacks make of them: the true class's probability, and examples (hicheur2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from kwbench.attacks.attack import Attack, strict
from kwbench.data import Batch
from kwbench.experiments.experiment import Subject, numbers
from kwbench.geometry import TOLERANCE, distance
from kwbench.randomness import SampleRandom
from kwbench.record.measurement import Array


@dataclass(frozen=True)
class Answers:
    """The probability of the true class and the prediction, on the images and on what each attack of the suite proposes.

    A proposal outside the ball, or that is no image, counts as none: the image itself stands. `examples` images a kind are
    kept: of each attack, the first that fool the model and the first that do not, of those that it has right before.
    A random model answers with one pass of its rule of prediction.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    usual: ClassVar[int] = 128

    examples: int = 3

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError("examples must not be negative")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """`probability`, `prediction` and `moved` (1 + attacks, n), the images themselves first; `label` (n,).

        `example` (attacks, 2, examples): rows of the slice, those that fool the model first, -1 where there are too few.
        `image` and `adversarial` (attacks, 2, examples, c, h, w) are these images, NaN where there are none.
        """
        model, batch = subject.model, subject.batch
        answers = [self._answer(subject, "clean", batch.x)]
        proposals = [batch.x]
        for label, attack in subject.attacks.items():
            parts = [_proposed(subject, label, attack, tile) for tile in batch.tiles(model.tile)]
            proposals.append(torch.cat(parts))
            answers.append(self._answer(subject, label, proposals[-1]))
        probability, prediction = (torch.stack(each) for each in zip(*answers, strict=True))
        moved = torch.stack([distance(batch.x, each, subject.threat.norm) for each in proposals])
        right = prediction == batch.y
        chosen = torch.full((len(proposals) - 1, 2, self.examples), -1, device=batch.x.device)
        for number in range(1, len(proposals)):
            for kind, rows in enumerate((right[0] & ~right[number], right[0] & right[number])):
                first = rows.nonzero().flatten()[: self.examples]
                chosen[number - 1, kind, : len(first)] = first
        return {
            "probability": numbers(probability),
            "prediction": numbers(prediction),
            "moved": numbers(moved),
            "label": numbers(batch.y),
            "example": numbers(chosen),
            "image": numbers(_at(chosen, [batch.x] * len(chosen))),
            "adversarial": numbers(_at(chosen, proposals[1:])),
        }

    def _answer(self, subject: Subject, label: str, images: Tensor) -> tuple[Tensor, Tensor]:
        model, batch = subject.model, subject.batch
        model.reseed(subject.seed, "answers", label, *batch.samples)
        with torch.no_grad():
            logits = model(images).double()
        return logits.softmax(dim=1).gather(1, batch.y[:, None])[:, 0], logits.argmax(dim=1)


def _at(chosen: Tensor, images: Sequence[Tensor]) -> Tensor:
    """The images (a, 2, m, c, h, w) at rows `chosen` (a, 2, m) of each of the a batches, NaN where the row is -1."""
    found = [
        torch.where((rows >= 0)[..., None, None, None], x[rows], torch.nan) for rows, x in zip(chosen, images, strict=True)
    ]
    return torch.stack(found)


def _proposed(subject: Subject, label: str, attack: Attack, tile: Batch) -> Tensor:
    """Images that the judge would accept; where the attack has none, the image itself."""
    rng = SampleRandom(subject.seed, label, tile.samples)
    for each in (subject.model, attack.source):
        if each is not None:
            each.reseed(subject.seed, label, "search", *tile.samples)
    z = attack(subject.model, tile.x.clone(), tile.y.clone(), subject.threat, rng).detach()
    flat = z.flatten(1)
    image = flat.isfinite().all(dim=1) & (flat >= 0).all(dim=1) & (flat <= 1).all(dim=1)
    inside = image & (distance(tile.x, z.nan_to_num(), subject.threat.norm) <= subject.threat.radius + TOLERANCE)
    return torch.where(inside.view(-1, 1, 1, 1), z, tile.x)
