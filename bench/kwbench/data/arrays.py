"""Data sets from arrays and tensors in memory, and the checks that every user's own images must pass."""

from typing import Any

import numpy as np
from torch import Tensor

from kwbench.data.dataset import DEFAULT_THREAT, Array, DataSet, Split
from kwbench.errors import UsageError
from kwbench.threat import ThreatModel

# Far more classes than any data set has; larger labels are not class indices.
_MAX_CLASSES = 1_000_000

# Pixels that leave [0, 1] by no more than this do so by rounding, as after resizing.
_ROUNDING = 0.01


def dataset_from_arrays(
    images: Array | Tensor, labels: Array | Tensor, name: str = "tensors", threat: ThreatModel = DEFAULT_THREAT
) -> DataSet:
    """Make a data set whose test split is these samples; the other splits are empty.

    The number of classes is inferred from the labels, so `fixed_classes` is False. float32 images are not copied: do not
    change them while the data set is in use.

    Args:
        images: (n, c, h, w) with 1 or 3 channels, uint8 or float in [0, 1].
        labels: (n,) integers from 0.

    Raises UsageError that names `x` (the images) or `y` (the labels).
    """
    test = checked_split(_as_array(images), _as_array(labels))
    return DataSet(name, infer_classes(test), test, test.empty(), test.empty(), threat=threat, fixed_classes=False)


def infer_classes(*splits: Split) -> int:
    """Return one more than the largest label of the splits that have samples."""
    return 1 + max(int(split.labels.max()) for split in splits if len(split))


def checked_split(images: Array, labels: Array, *, x: str = "x", y: str = "y") -> Split:
    """Return a split of images (n, c, h, w) and labels (n,); float images become float32, without a copy where possible.

    Raises UsageError for a wrong shape, type or range; the message calls the images `x` and the labels `y`.
    """
    images = _checked_images(images, x)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{y} is {labels.dtype} of shape {labels.shape}; it must be a row of integers")
    if len(labels) != len(images):
        raise UsageError(f"{len(images)} images in {x}, {len(labels)} labels in {y}")
    if not images.size:
        raise UsageError(f"{x} is empty")
    if labels.min() < 0 or labels.max() >= _MAX_CLASSES:
        invalid = labels.min() if labels.min() < 0 else labels.max()
        raise UsageError(f"{y} holds the label {invalid}; labels count from 0, to {_MAX_CLASSES - 1} at most")
    return Split(images, labels.astype(np.int64, copy=False))


def _checked_images(images: Array, x: str) -> Array:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(f"{x} has shape {images.shape}; it must be (n, channels, height, width) with 1 or 3 channels")
    if images.dtype == np.uint8:
        if images.size and images.max() == 1:
            raise UsageError(f"{x} is uint8 and holds only 0 and 1; pixels go to 255, or must be floats in [0, 1]")
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UsageError(f"{x} is {images.dtype}; it must be uint8, or floats in [0, 1]")
    if not np.isfinite(images).all():
        raise UsageError(f"{x} holds NaN or infinity")
    if images.size and (images.min() < 0 or images.max() > 1):
        low, high = images.min(), images.max()
        rounding = max(-low, high - 1) <= _ROUNDING
        advice = f"clip them with numpy.clip({x}, 0, 1)" if rounding else "pixels from 0 to 255 must be uint8"
        raise UsageError(f"{x} ranges from {_digits(low)} to {_digits(high)}; floats must lie in [0, 1], {advice}")
    return images.astype(np.float32, copy=False)


def _digits(value: np.floating[Any]) -> str:
    """Return a number with all digits that tell it from its neighbours: 1.000001 is not 1."""
    return str(value).removesuffix(".0")


def _as_array(values: Array | Tensor) -> Array:
    """Return a tensor as an array, on the CPU without a copy; NumPy has no bfloat16, so that becomes float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype.is_floating_point and values.dtype.itemsize < 4 else values)
    return np.asarray(values)
