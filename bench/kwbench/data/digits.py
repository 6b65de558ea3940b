"""scikit-learn's handwritten digits, split into train, validation and test by the images alone."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from kwbench.data.dataset import Array, Split, Splits, sample_hash


def read_digits(folder: Path, download: bool) -> Splits:
    """Return the digits (1, 8, 8): 36 test, 18 validation and the other training images of each class.

    They come with scikit-learn, so neither `folder` nor `download` matters.
    """
    pixels, labels = _sklearn_digits()
    images = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = labels.astype(np.int64)
    test, validation, train = [], [], []
    for label in range(10):
        # An order that depends on the images alone, whatever the versions of the libraries.
        members = sorted(np.flatnonzero(labels == label), key=lambda index: (sample_hash(images[index], label), index))
        test += members[:36]
        validation += members[36:54]
        train += members[54:]
    splits = []
    for members in (test, train, validation):
        order = sorted(members, key=lambda index: (sample_hash(images[index], int(labels[index])), index))
        splits.append(Split(images[order], labels[order]))
    return splits[0], splits[1], splits[2]


def _sklearn_digits() -> tuple[Array, Array]:
    """Return pixels (n, 64) from 0 to 16 and labels (n,).

    They are read from scikit-learn's file, because importing scikit-learn takes a second.
    """
    package = find_spec("sklearn")
    path = Path((package.origin if package else None) or "").parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels
