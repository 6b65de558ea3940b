"""The interface of experiments: a frozen configuration that measures arrays on one model. It neither judges nor stores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.data import Batch
from kwbench.model import Model
from kwbench.record.measurement import Array
from kwbench.threat import ThreatModel


@dataclass(frozen=True)
class Subject:
    """The input of an experiment: a model, images, the threat model, a seed, and the attacks of the suite by label."""

    model: Model
    batch: Batch
    threat: ThreatModel
    seed: int
    attacks: Mapping[str, Attack]


class Experiment(Protocol):
    """A frozen dataclass whose fields are its whole configuration. None: derived from the images or the threat model.

    `default_images`: the number of images if the user gives none.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    revision: ClassVar[int]

    @property
    def default_images(self) -> int: ...

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """Return the measured arrays by name."""
        ...


class Synthetic(Protocol):
    """An experiment that builds its own network, configured like an `Experiment`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    revision: ClassVar[int]

    def __call__(self, seed: int) -> dict[str, Array]:
        """Return the measured arrays by name."""
        ...


def numbers(tensor: Tensor) -> Array:
    """Return a tensor as a float64 array on the CPU."""

    array: Array = tensor.detach().double().cpu().numpy()
    return array
