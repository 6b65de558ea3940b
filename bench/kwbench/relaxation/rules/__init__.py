"""The rules, one module for each kind of operation. Importing this package registers them all.

Add a new module to the line below. The order matters: a rule replaces an earlier one for the same operation, as that of
`rounding` for `clamp_min` replaces that of `saturation`, which `attention` imports.
"""

from kwbench.relaxation.rules import (
    attention,
    choices,
    comparisons,
    indexing,
    masks,
    periodic,
    quantisation,
    rounding,
    saturation,
    views,
)

__all__ = [
    "attention",
    "choices",
    "comparisons",
    "indexing",
    "masks",
    "periodic",
    "quantisation",
    "rounding",
    "saturation",
    "views",
]
