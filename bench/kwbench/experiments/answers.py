"""True-class probabilities and predictions on clean and attacked images, with example images (hicheur2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from kwbench.attacks.attack import Attack, strict
from kwbench.data import Batch
from kwbench.experiments.experiment import Subject, numbers
from kwbench.geometry import distance
from kwbench.randomness import SampleRandom
from kwbench.record.measurement import Array
from kwbench.threat import TOLERANCE


@dataclass(frozen=True)
class Answers:
    """Measure the true class's probability and the prediction on clean images and on the proposals of each attack.

    A proposal outside the ball or the pixel range is replaced by the clean image. For each attack, `examples` images of
    each kind are kept among those that are classified correctly without it: the first that fool the model and the first
    that do not. A stochastic model predicts once, by its prediction rule.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    default_images: ClassVar[int] = 128

    examples: int = 3

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError("examples must not be negative")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """Return `probability`, `prediction` and `moved` (1 + attacks, n), clean images first, and `label` (n,).

        `moved` is the distance from the clean image in the threat model's norm. `example` (attacks, 2, examples) holds
        indices into the batch, those that fool the model first, -1 where there are too few. `image` and `adversarial`
        (attacks, 2, examples, c, h, w) are these images, NaN where there are none.
        """
        model, batch = subject.model, subject.batch
        predictions = [self._predict(subject, "clean", batch.x)]
        proposals = [batch.x]
        for label, attack in subject.attacks.items():
            parts = [_proposed(subject, label, attack, tile) for tile in batch.tiles(model.tile)]
            proposals.append(torch.cat(parts))
            predictions.append(self._predict(subject, label, proposals[-1]))
        probability, prediction = (torch.stack(columns) for columns in zip(*predictions, strict=True))
        moved = torch.stack([distance(batch.x, proposal, subject.threat.norm) for proposal in proposals])
        correct = prediction == batch.y
        chosen = torch.full((len(proposals) - 1, 2, self.examples), -1, device=batch.x.device)
        for number in range(1, len(proposals)):
            for kind, rows in enumerate((correct[0] & ~correct[number], correct[0] & correct[number])):
                first = rows.nonzero().flatten()[: self.examples]
                chosen[number - 1, kind, : len(first)] = first
        return {
            "probability": numbers(probability),
            "prediction": numbers(prediction),
            "moved": numbers(moved),
            "label": numbers(batch.y),
            "example": numbers(chosen),
            "image": numbers(_select(chosen, [batch.x] * len(chosen))),
            "adversarial": numbers(_select(chosen, proposals[1:])),
        }

    def _predict(self, subject: Subject, label: str, images: Tensor) -> tuple[Tensor, Tensor]:
        """The probability of the true class (n,) and the predicted class (n,)."""
        model, batch = subject.model, subject.batch
        model.reseed(subject.seed, "answers", label, *batch.samples)
        with torch.no_grad():
            logits = model(images).double()
        return logits.softmax(dim=1).gather(1, batch.y[:, None])[:, 0], logits.argmax(dim=1)


def _select(chosen: Tensor, images: Sequence[Tensor]) -> Tensor:
    """The images (a, 2, m, c, h, w) at rows `chosen` (a, 2, m) of a batches, NaN where the row is -1."""
    selected = [
        torch.where((rows >= 0)[..., None, None, None], x[rows], torch.nan) for rows, x in zip(chosen, images, strict=True)
    ]
    return torch.stack(selected)


def _proposed(subject: Subject, label: str, attack: Attack, tile: Batch) -> Tensor:
    """The attack's proposals that the judge would accept; the clean image where a proposal is not valid."""
    rng = SampleRandom(subject.seed, label, tile.samples)
    for model in (subject.model, attack.source):
        if model is not None:
            model.reseed(subject.seed, label, "search", *tile.samples)
    z = attack(subject.model, tile.x.clone(), tile.y.clone(), subject.threat, rng).detach()
    flat = z.flatten(1)
    in_range = flat.isfinite().all(dim=1) & (flat >= 0).all(dim=1) & (flat <= 1).all(dim=1)
    valid = in_range & (distance(tile.x, z.nan_to_num(), subject.threat.norm) <= subject.threat.radius + TOLERANCE)
    return torch.where(valid.view(-1, 1, 1, 1), z, tile.x)
