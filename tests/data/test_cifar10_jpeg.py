"""CIFAR-10 recompressed as JPEG, read from its zip archive."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kwbench.data import load_dataset
from kwbench.errors import CannotEvaluate, DamagedData, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def jpeg_zip(folder: Path, per_class: int = 2, size: tuple[int, int] = (32, 32), classes: tuple[str, ...] = CLASSES) -> Path:
    """Write a zip like cifar10-jpeg.zip: `per_class` test images of each class and five times as many training images."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "cifar10-jpeg.zip", "w") as archive:
        for part, n in (("test", per_class), ("train", 5 * per_class)):
            for name in classes:
                for index in range(n):
                    buffer = io.BytesIO()
                    Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "JPEG")
                    archive.writestr(f"{part}/{name}/{index:04}.jpg", buffer.getvalue())
    return folder


def test_jpeg_cifar10_is_read_from_its_zip_shuffled_with_a_tenth_for_validation(tmp_path: Path) -> None:
    dataset = load_dataset(
        "cifar10-jpeg", data_dir=jpeg_zip(tmp_path), download=True
    )  # the zip exists, so nothing is downloaded
    assert (dataset.name, dataset.classes, dataset.shape, dataset.fixed_classes) == ("cifar10-jpeg", 10, (3, 32, 32), True)
    assert (len(dataset.test), len(dataset.train), len(dataset.validation)) == (20, 90, 10)
    assert np.bincount(dataset.test.labels).tolist() == [2] * 10
    assert (np.diff(dataset.test.labels) < 0).sum() > 2, "the classes are not mixed"
    with zipfile.ZipFile(tmp_path / "cifar10-jpeg.zip") as archive, Image.open(archive.open("test/frog/0001.jpg")) as image:
        pixels = np.asarray(image).transpose(2, 0, 1)
    (row,) = np.flatnonzero((dataset.test.images == pixels).all(axis=(1, 2, 3)))
    assert dataset.test.labels[row] == CLASSES.index("frog")
    reloaded = load_dataset("cifar10-jpeg", data_dir=tmp_path)
    assert (reloaded.train.images == dataset.train.images).all()


def test_a_zip_that_is_not_jpeg_cifar10_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match=r"cifar10-jpeg\.zip: cannot be read .*--data-dir"):
        load_dataset("cifar10-jpeg", data_dir=tmp_path)
    with pytest.raises(UsageError, match="no public address"):
        load_dataset("cifar10-jpeg", data_dir=tmp_path, download=True)
    with pytest.raises(DamagedData, match=r"0000\.jpg has shape \(3, 8, 32\)"):
        load_dataset("cifar10-jpeg", data_dir=jpeg_zip(tmp_path, size=(8, 32)))
    with pytest.raises(DamagedData, match="images of 9 classes"):
        load_dataset("cifar10-jpeg", data_dir=jpeg_zip(tmp_path, classes=CLASSES[:9]))
    with zipfile.ZipFile(tmp_path / "cifar10-jpeg.zip", "w") as archive:
        for name in CLASSES:
            archive.writestr(f"test/{name}/0.jpg", b"no image")
    with pytest.raises(DamagedData, match=r"test/airplane/0\.jpg: not a readable image"):
        load_dataset("cifar10-jpeg", data_dir=tmp_path)
    (tmp_path / "cifar10-jpeg.zip").write_bytes(b"PK no zip")
    with pytest.raises(DamagedData, match="not a zip archive"):
        load_dataset("cifar10-jpeg", data_dir=tmp_path)
