"""MNIST, CIFAR-10 and SVHN through torchvision. The last tenth of the training images is held out for validation."""

from pathlib import Path
from typing import Any

import numpy as np

from kwbench.data.dataset import Split, Splits
from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.torchvision_schemas import import_torchvision


def read_mnist(folder: Path, download: bool) -> Splits:
    """Return MNIST, images (1, 28, 28), from `folder`/MNIST/raw."""
    return _read("MNIST", folder, download, test={"train": False}, train={"train": True})


def read_cifar10(folder: Path, download: bool) -> Splits:
    """Return CIFAR-10, images (3, 32, 32), from `folder`/cifar-10-batches-py."""
    return _read("CIFAR10", folder, download, test={"train": False}, train={"train": True})


def read_cifar100(folder: Path, download: bool) -> Splits:
    """Return CIFAR-100, images (3, 32, 32) with their fine labels, from `folder`/cifar-100-python.

    Its files are pickles, which are opened only if their MD5 is that of the published ones.
    """
    return _read("CIFAR100", folder, download, test={"train": False}, train={"train": True})


def read_svhn(folder: Path, download: bool) -> Splits:
    """Return SVHN, images (3, 32, 32), from `folder`/test_32x32.mat and train_32x32.mat."""
    return _read("SVHN", folder, download, test={"split": "test"}, train={"split": "train"})


def _read(reader: str, folder: Path, download: bool, *, test: dict[str, Any], train: dict[str, Any]) -> Splits:
    """Read both parts with torchvision's class `reader`; `test` and `train` are the arguments that select a part."""
    test_split = _read_part(reader, folder, download, test)
    train_split, validation_split = _read_part(reader, folder, download, train).hold_out_tenth()
    return test_split, train_split, validation_split


def _read_part(reader: str, folder: Path, download: bool, part: dict[str, Any]) -> Split:
    datasets = import_torchvision().datasets
    try:
        dataset = getattr(datasets, reader)(root=str(folder), download=download, **part)
    except Exception as failure:  # noqa: BLE001 - the readers check little and raise nearly anything
        if download or isinstance(failure, OSError) or "not found" in str(failure):
            raise CannotEvaluate(
                f"{reader}: cannot be read under {folder} ({failure}); name its folder with --data-dir, or add --download"
            ) from None
        raise DamagedData(f"{reader}: a file under {folder} is damaged ({type(failure).__name__}: {failure})") from None
    images = np.asarray(dataset.data)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels).astype(np.int64)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    return Split(images, labels)
