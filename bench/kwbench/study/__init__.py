"""Experiments as users ask for them: on models of the registry, on what training left, on series of evaluations."""

from kwbench.study.learning import record_learning
from kwbench.study.measuring import measure, parameters_in, synthesize
from kwbench.study.series import record_series
from kwbench.study.sparsity import Variant, train_series, variants

__all__ = [
    "Variant",
    "measure",
    "parameters_in",
    "record_learning",
    "record_series",
    "synthesize",
    "train_series",
    "variants",
]
