"""The types that every reader returns: samples, splits, data sets, and the hashes that identify them.

Images are uint8 or float32 in [0, 1] in a split, and float32 (b, c, h, w) in [0, 1] in a batch. The test split is for reported
numbers only; eps, epochs and recipes are chosen on the validation split.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kwbench.threat import ThreatModel

Array = npt.NDArray[Any]

# The radius for images that are not like those of a named data set: that of CIFAR-10.
DEFAULT_THREAT = ThreatModel.of("linf", "8/255")


@dataclass(frozen=True)
class Batch:
    """Samples as tensors: hashes, positions in the split, images (b, c, h, w) in [0, 1], contiguous, and labels (b,)."""

    samples: tuple[str, ...]
    indices: tuple[int, ...]
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: Sequence[int]) -> "Batch":
        """Return the given rows in the given order."""
        chosen = list(rows)
        samples, indices = tuple(self.samples[row] for row in chosen), tuple(self.indices[row] for row in chosen)
        return Batch(samples, indices, self.x[chosen], self.y[chosen])

    def tiles(self, size: int) -> list["Batch"]:
        """Split the batch into pieces of `size` samples; the last piece may be shorter."""
        return [self.take(range(start, min(start + size, len(self)))) for start in range(0, len(self), size)]

    def to(self, device: torch.device | str) -> "Batch":
        """Move images and labels to another device."""
        return Batch(self.samples, self.indices, self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Split:
    """Images (n, c, h, w), uint8 or float32 in [0, 1], and labels (n,)."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the samples at these positions as a batch. Duplicates of a sample get distinct hashes."""
        chosen = list(indices)
        images, labels = np.ascontiguousarray(as_float(self.images[chosen])), self.labels[chosen].astype(np.int64)
        samples, occurrences = [], Counter[str]()
        for image, label in zip(images, labels, strict=True):
            sample = sample_hash(image, int(label))
            repeat = occurrences[sample]
            occurrences[sample] += 1
            samples.append(hashlib.sha256(f"{sample} {repeat}".encode()).hexdigest()[:32] if repeat else sample)
        return Batch(tuple(samples), tuple(chosen), torch.from_numpy(images), torch.from_numpy(labels))

    def hold_out_tenth(self) -> tuple["Split", "Split"]:
        """Split off the last tenth: return the training samples and the validation samples."""
        first = len(self) - len(self) // 10
        return Split(self.images[:first], self.labels[:first]), Split(self.images[first:], self.labels[first:])

    def empty(self) -> "Split":
        """Return a split without samples whose images have the same shape."""
        return Split(self.images[:0], self.labels[:0])


# Test, train and validation.
Splits = tuple[Split, Split, Split]

# From the folder of the data sets' files, and whether missing files may be downloaded, to the splits.
Reader = Callable[[Path, bool], Splits]


@dataclass(frozen=True)
class DataSetSpec:
    """A data set that is known by name: how it is read, what its images are, and where it is attacked by default.

    Attributes:
        read: Raises CannotEvaluate for missing files, DamagedData for files of another content.
        shape: (c, h, w) of an image.
        threat: The threat model when neither a suite nor the command line gives one.
        revision: Part of a run's identity; raise it when the reader returns other samples or another order.
    """

    name: str
    read: Reader
    shape: tuple[int, int, int]
    classes: int
    threat: ThreatModel
    revision: int = 1


@dataclass(frozen=True)
class DataSet:
    """A data set in memory.

    Attributes:
        fixed_classes: False if the number of classes was only inferred from the labels.
        reader_revision: The revision of the reader, part of a run's identity.
        class_names: The names of the classes by label; empty where labels are only numbers.
    """

    name: str
    classes: int
    test: Split
    train: Split
    validation: Split
    threat: ThreatModel
    fixed_classes: bool = True
    reader_revision: int = 1
    class_names: tuple[str, ...] = ()

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(c, h, w) of an image."""
        return tuple(self.test.images.shape[1:])


def as_float(images: Array) -> npt.NDArray[np.float32]:
    """Return images as float32 in [0, 1], without a copy if they are float32 already."""
    return (images.astype(np.float32) / np.float32(255)) if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def sample_hash(image: Array, label: int) -> str:
    """Return the identity of a sample: the first 128 bits of SHA-256 over its float32 pixels and its label, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(image, dtype="<f4").tobytes() + label.to_bytes(8, "little")).hexdigest()[:32]


def slice_hash(samples: Sequence[str]) -> str:
    """Return SHA-256 over the hashes of a slice's samples, in their order."""
    return hashlib.sha256("".join(samples).encode()).hexdigest()
