"""Counts behind certificates of models with Gaussian noise on their input, see `kwbench.record.certificates`."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from kwbench.attacks.attack import strict
from kwbench.errors import CannotEvaluate
from kwbench.experiments.experiment import Subject
from kwbench.model import Model
from kwbench.networks.architectures.noise import Smoothed
from kwbench.record.measurement import Array


@dataclass(frozen=True)
class GaussianDraws:
    """Count right predictions of clean images among `draws` single draws each, whatever the prediction rule."""

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict
    default_images: ClassVar[int] = 128

    draws: int = 1000

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError("draws must be at least 1")

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """Return `correct` and `draws`, each (n,). Raises CannotEvaluate for a model that declares no Gaussian noise."""
        model, batch = subject.model, subject.batch
        if not isinstance(model.module, Smoothed):
            raise CannotEvaluate(f"{model.name}: it declares no Gaussian noise on its input")
        single = Model(
            model.module, name=model.name, classes=model.classes, shape=model.shape, device=model.device, tile=model.tile
        )
        single.stochastic = True
        correct = []
        # The noise of an image depends on its position in a pass: tiles of the slice, as everywhere.
        for tile in batch.tiles(model.tile):
            single.reseed(subject.seed, "gaussian certificate", *tile.samples)
            correct.append(single.count_correct(tile.x, tile.y, self.draws)[0].double().cpu().numpy())
        return {"correct": np.concatenate(correct), "draws": np.full(len(batch), float(self.draws))}
