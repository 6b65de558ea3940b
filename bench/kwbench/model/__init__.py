"""The classifier as attacks see it, and how its passes are batched, recorded and made faster."""

from kwbench.model.model import (
    Model,
    Precision,
    Prediction,
    find_device,
    has_bfloat16,
    keep_freed_memory,
    raise_if_memory_is_out,
    require_exact_float32,
    tile_of,
)

# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 1

__all__ = [
    "REVISION",
    "Model",
    "Precision",
    "Prediction",
    "find_device",
    "has_bfloat16",
    "keep_freed_memory",
    "raise_if_memory_is_out",
    "require_exact_float32",
    "tile_of",
]
