"""What an experiment is: a frozen configuration that measures arrays on one model. It neither judges nor stores."""

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
    """The model that is looked at, the images, the ball around them, the seed, and the attacks of the suite by label."""

    model: Model
    batch: Batch
    threat: ThreatModel
    seed: int
    attacks: Mapping[str, Attack]


class Experiment(Protocol):
    """A frozen dataclass whose fields are its whole configuration; None stands for what the images and the ball suggest.

    `usual`: how many images it takes unless it is told.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    revision: ClassVar[int]

    @property
    def usual(self) -> int: ...

    def __call__(self, subject: Subject) -> dict[str, Array]:
        """The arrays that it measures, by name."""
        ...


class Synthetic(Protocol):
    """The same, for an experiment that makes its own network."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    revision: ClassVar[int]

    def __call__(self, seed: int) -> dict[str, Array]:
        """The arrays that it measures, by name."""
        ...


def numbers(tensor: Tensor) -> Array:
    """A tensor as float64 on the CPU."""
    array: Array = tensor.detach().double().cpu().numpy()
    return array
