"""Images in npy files with labels.npy beside them, as CIFAR-10-C has them (Hendrycks and Dietterich 2019, arXiv:1903.12261)."""

from pathlib import Path

import numpy as np

from kwbench.data.arrays import checked_split, infer_classes
from kwbench.data.dataset import Array, Splits
from kwbench.data.form import DataForm
from kwbench.errors import CannotEvaluate, DamagedData, UsageError

LABELS = "labels.npy"


def read_npy(path: Path, form: DataForm) -> tuple[Splits, int]:
    """Return the splits and the number of classes; only the test split has samples.

    Images have the shape (n, h, w, c) or (n, c, h, w). `form.severity` chooses one of the five blocks of equal length, which
    are of 10,000 images in CIFAR-10-C.

    Raises CannotEvaluate if a file cannot be opened, DamagedData if it holds no images or labels.
    """
    images, labels = _read(path), _read(path.with_name(LABELS))
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if form.severity is not None:
        block = len(images) // 5
        if len(images) != 5 * block or block == 0:
            raise UsageError(f"--severity {form.severity}: {path} holds {len(images)} images, which are not five blocks")
        chosen = slice((form.severity - 1) * block, form.severity * block)
        images, labels = images[chosen], labels[chosen]
    images = form.shaped_all(images, str(path))
    try:
        test = checked_split(np.ascontiguousarray(images), labels, x=path.name, y=LABELS)
    except UsageError as failure:
        raise DamagedData(f"{path}: {failure}") from None
    return (test, test.empty(), test.empty()), infer_classes(test)


def corruptions(folder: Path) -> list[str]:
    """Return the names of the npy files of images in a folder that has labels.npy; empty for another folder."""
    if not (folder / LABELS).is_file():
        return []
    return sorted(path.name for path in folder.glob("*.npy") if path.name != LABELS)


def _read(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False, mmap_mode="r")
    except OSError as failure:
        raise CannotEvaluate(
            f"{path}: cannot be read ({failure.strerror or failure}); images need {LABELS} beside them"
        ) from None
    except Exception as failure:  # noqa: BLE001 - numpy raises nearly anything on damaged files
        raise DamagedData(f"{path}: not a readable npy file of a plain array ({failure})") from None
    return array
