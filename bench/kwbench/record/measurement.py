"""The result of an experiment: arrays of numbers, and everything that could have changed them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of one experiment.

    Attributes:
        identity: digest of `spec`.
        experiment: name of the experiment.
        model: name of the model; empty if it has none.
        dataset: name of the data set; empty if it has none.
        spec: everything that identifies the measurement; JSON values.
        provenance: device, command: stored, but not part of the identity; JSON values.
        arrays: what was measured, by name; NaN stands for what could not be measured.
    """

    identity: str
    experiment: str
    model: str
    dataset: str
    spec: Mapping[str, Any]
    provenance: Mapping[str, Any]
    arrays: Mapping[str, Array]
