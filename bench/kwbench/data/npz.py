"""Users' own images from an npz file with x_test and y_test, and perhaps x_train and y_train."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kwbench.data.arrays import checked_split, infer_classes
from kwbench.data.dataset import Array, Split, Splits
from kwbench.data.form import AS_IT_IS, DataForm
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.files import open_file

# Bytes that any archive may expand to, and how many times its size a larger one may. Images of one colour reach 1000.
_SMALL, _MOST_EXPANDED = 1 << 28, 100


def read_npz(path: Path, form: DataForm = AS_IT_IS) -> tuple[Splits, int]:
    """Return the splits and the number of classes; the validation split is empty. With `form.keys`, so is the train split.

    Raises CannotEvaluate if the file cannot be opened, DamagedData if its arrays are not images and labels.
    """
    if form.keys is not None:
        arrays = _read_arrays(path, form.keys)
        for key in form.keys:
            if key not in arrays:
                raise DamagedData(f"{path}: key {key!r} of --keys is missing; {_listed(path)}")
        test = _checked(path, arrays, *form.keys, form)
        return (test, test.empty(), test.empty()), infer_classes(test)
    arrays = _read_arrays(path, ("x_test", "y_test", "x_train", "y_train"))
    for key in ("x_test", "y_test"):
        if key not in arrays:
            raise DamagedData(
                f"{path}: key {key!r} is missing; the file must hold x_test and y_test, or --keys names others; {_listed(path)}"
            )
    test = _checked(path, arrays, "x_test", "y_test", form)
    if ("x_train" in arrays) != ("y_train" in arrays):
        raise DamagedData(f"{path}: x_train and y_train come together, one of them is missing")
    train = _checked(path, arrays, "x_train", "y_train", form) if "x_train" in arrays else test.empty()
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DamagedData(f"{path}: images are {train.images.shape[1:]} in x_train and {test.images.shape[1:]} in x_test")
    return (test, train, test.empty()), infer_classes(test, train)


def _read_arrays(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    try:
        content = open_file(path)
    except OSError as failure:
        reason = "no such file" if isinstance(failure, FileNotFoundError) else f"cannot be read ({failure.strerror})"
        raise CannotEvaluate(
            f"{path}: {reason}; --data takes an npz file with x_test and y_test, or a folder of images"
        ) from None
    try:
        with content:
            _require_bounded(content)
            archive = np.load(content, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise TypeError("it holds one array without a name")
            return {key: archive[key] for key in keys if key in archive}
    except Exception as failure:  # noqa: BLE001 - numpy and zipfile raise nearly anything on damaged files
        raise DamagedData(f"{path}: not a readable npz file of plain arrays ({failure})") from None


def _require_bounded(content: BinaryIO) -> None:
    """Raise ValueError for an archive that expands as no archive of images does."""
    size = os.fstat(content.fileno()).st_size
    if zipfile.is_zipfile(content):
        content.seek(0)
        with zipfile.ZipFile(content) as archive:
            expanded = sum(member.file_size for member in archive.infolist())
        if expanded > _SMALL and expanded > _MOST_EXPANDED * size:
            raise ValueError(f"{size} bytes expand to {expanded}; images are compressed at most {_MOST_EXPANDED} times")
    content.seek(0)


def _listed(path: Path) -> str:
    """Return what a file holds, for messages."""
    with np.load(path, allow_pickle=False) as archive:
        return f"it holds {', '.join(archive.files) or 'nothing'}"


def _checked(path: Path, arrays: dict[str, Array], x: str, y: str, form: DataForm) -> Split:
    images = form.shaped_all(arrays[x], x)
    try:
        return checked_split(images, arrays[y], x=x, y=y)
    except UsageError as failure:
        raise DamagedData(f"{path}: {failure}") from None
