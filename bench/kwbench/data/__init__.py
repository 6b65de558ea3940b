"""Data sets: embedded digits, torchvision's sets, and users' npz files and folders."""

from kwbench.data.dataset import (
    DEFAULT_THREATS,
    IMAGE_SHAPES,
    Array,
    Batch,
    DataSet,
    Split,
    dataset_names,
    load_dataset,
    sample_hash,
    slice_hash,
)

__all__ = [
    "DEFAULT_THREATS",
    "IMAGE_SHAPES",
    "Array",
    "Batch",
    "DataSet",
    "Split",
    "dataset_names",
    "load_dataset",
    "sample_hash",
    "slice_hash",
]
