"""Data sets for tests: invented images, npz files, and a split as one batch."""

from pathlib import Path
from typing import Any

import numpy as np

from kwbench.data import Batch, DataSet, Split, load_dataset


def full_batch(split: Split) -> Batch:
    """Return all samples of a split as one batch."""
    return split.batch(range(len(split)))


def load_npz(folder: Path, **arrays: Any) -> DataSet:
    """Write the arrays to own.npz and load it as a data set."""
    np.savez(folder / "own.npz", **arrays)
    return load_dataset("digits", data=folder / "own.npz")


def images(n: int = 4, shape: tuple[int, ...] = (3, 5, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
