"""What an experiment measured: arrays of numbers, and all that could have changed them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of one experiment.

    `experiment` is its name; `model` and `dataset` are empty where it has none. `spec` holds all that identifies it, and
    `identity` is its digest; `provenance` what is worth knowing besides (device, command). `arrays` by name; NaN stands for
    what could not be measured.
    """

    identity: str
    experiment: str
    model: str
    dataset: str
    spec: Mapping[str, Any]
    provenance: Mapping[str, Any]
    arrays: Mapping[str, Array]
