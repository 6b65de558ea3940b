"""The classifier as attacks see it, and how its passes are batched, recorded and made faster."""

from kwbench.model.device import (
    find_device,
    has_bfloat16,
    keep_freed_memory,
    raise_if_memory_is_out,
    require_exact_float32,
)
from kwbench.model.forward import Precision, fill_tile
from kwbench.model.model import Model
from kwbench.model.outputs import are_answers, returns_labels, with_logits
from kwbench.model.prediction import Prediction
from kwbench.model.search_precision import precisions_on

# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 2

__all__ = [
    "REVISION",
    "Model",
    "Precision",
    "Prediction",
    "are_answers",
    "fill_tile",
    "find_device",
    "has_bfloat16",
    "keep_freed_memory",
    "precisions_on",
    "raise_if_memory_is_out",
    "require_exact_float32",
    "returns_labels",
    "with_logits",
]
