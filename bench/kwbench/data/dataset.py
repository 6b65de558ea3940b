"""Real images: the embedded digits, torchvision's data sets, npz files and image folders.

Every data set ends as float32 (b, c, h, w) in [0, 1] with integer labels, split into train, validation and test. The test
split is for reported numbers only; eps, epochs and recipes are chosen on the validation split.
"""

import hashlib
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kwbench.errors import CannotEvaluate, DamagedData, UsageError, did_you_mean
from kwbench.threat import ThreatModel
from kwbench.torchvision_schemas import import_torchvision

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Some samples: their hashes, positions in the split, images (b, c, h, w) in [0, 1] and labels (b,)."""

    samples: tuple[str, ...]
    indices: tuple[int, ...]
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: Sequence[int]) -> "Batch":
        """Only these rows, in this order."""
        chosen = list(rows)
        samples, indices = tuple(self.samples[row] for row in chosen), tuple(self.indices[row] for row in chosen)
        return Batch(samples, indices, self.x[chosen], self.y[chosen])

    def tiles(self, size: int) -> list["Batch"]:
        """The batch cut into pieces of `size`, the last one perhaps shorter."""
        return [self.take(range(start, min(start + size, len(self)))) for start in range(0, len(self), size)]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.samples, self.indices, self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Split:
    """Images (n, c, h, w), uint8 or float32 in [0, 1], and labels (n,)."""

    images: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples at these positions, as float32. The second of two equal samples gets a hash of its own."""
        chosen = list(indices)
        images, labels = _as_float(self.images[chosen]), self.labels[chosen].astype(np.int64)
        samples, seen = [], Counter[str]()
        for image, label in zip(images, labels, strict=True):
            sample = sample_hash(image, int(label))
            seen[sample] += 1
            again = seen[sample] - 1
            samples.append(hashlib.sha256(f"{sample} {again}".encode()).hexdigest()[:32] if again else sample)
        return Batch(tuple(samples), tuple(chosen), torch.from_numpy(images), torch.from_numpy(labels))


@dataclass(frozen=True)
class DataSet:
    """A named data set. `fixed_classes` is False where the number of classes was only inferred from the labels."""

    name: str
    classes: int
    test: Split
    train: Split
    validation: Split
    threat: ThreatModel
    fixed_classes: bool = True
    reader_revision: int = 1

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(c, h, w) of an image."""
        return tuple(self.test.images.shape[1:])


def sample_hash(image: Array, label: int) -> str:
    """What identifies a sample: the first 128 bits of SHA-256 over its float32 pixels and its label, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(image, dtype="<f4").tobytes() + label.to_bytes(8, "little")).hexdigest()[:32]


def slice_hash(samples: Sequence[str]) -> str:
    """SHA-256 over the hashes of the samples of a slice, in their order."""
    return hashlib.sha256("".join(samples).encode()).hexdigest()


# The radius at which each data set is attacked when neither a suite nor the command line says otherwise.
DEFAULT_THREATS: dict[str, ThreatModel] = {
    # Chosen on the validation split; README, "The digits eps", says how.
    "digits": ThreatModel.of("linf", "0.2"),
    "mnist": ThreatModel.of("linf", "0.3"),  # xiao2020 D.4
    "cifar10": ThreatModel.of("linf", "8/255"),
    "cifar10-jpeg": ThreatModel.of("linf", "8/255"),
    "svhn": ThreatModel.of("linf", "0.047"),  # xiao2020 4.1
}

# Channels, height and width of the images of each data set that has a name; all have ten classes.
IMAGE_SHAPES: dict[str, tuple[int, int, int]] = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar10-jpeg": (3, 32, 32),
    "svhn": (3, 32, 32),
}


def load_dataset(name: str, *, data: Path | None = None, data_dir: Path | None = None, download: bool = False) -> DataSet:
    """A data set by name, or from `data`, an npz file or a folder of images in one folder a class.

    Raises UsageError for an unknown name, CannotEvaluate for missing files, DamagedData for files that are not what they
    should be.
    """
    if data is not None:
        splits, classes = _read_folder(data) if data.is_dir() else _read_npz(data)
        threat = DEFAULT_THREATS.get(name, DEFAULT_THREATS["cifar10"])
        return DataSet(data.stem, classes, *splits, threat=threat, fixed_classes=False)
    if name not in _READERS:
        raise UsageError(f"data set {name!r} is unknown; {did_you_mean(name, _READERS)}; --data reads your own files")
    test, train, validation = _READERS[name](data_dir, download)
    return DataSet(name, 10, test, train, validation, threat=DEFAULT_THREATS[name])


# Far more than any data set has; larger labels are another thing.
_MOST_CLASSES = 1_000_000


def dataset_names() -> list[str]:
    """The data sets that have a name."""
    return list(_READERS)


def _digits(data_dir: Path | None, download: bool) -> tuple[Split, Split, Split]:
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
    """Pixels (n, 64) from 0 to 16 and labels (n,), from scikit-learn's file, but without its import, which takes a second."""
    package = find_spec("sklearn")
    path = Path((package.origin if package else None) or "").parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


def _torchvision(reader: str, options: Callable[[bool], dict[str, Any]]) -> Callable[[Path | None, bool], Any]:
    def read(data_dir: Path | None, download: bool) -> tuple[Split, Split, Split]:
        root = data_dir if data_dir is not None else Path("data")
        datasets = import_torchvision().datasets
        parts = []
        for train in (False, True):
            try:
                part = getattr(datasets, reader)(root=str(root), download=download, **options(train))
            except Exception as failure:  # noqa: BLE001 - the readers check little, and fail however they fail
                if download or isinstance(failure, OSError) or "not found" in str(failure):
                    raise CannotEvaluate(
                        f"{reader}: cannot be read under {root} ({failure}); name its folder with --data-dir, or add --download"
                    ) from None
                raise DamagedData(f"{reader}: a file under {root} is damaged ({type(failure).__name__}: {failure})") from None
            images = np.asarray(part.data)
            labels = np.asarray(part.targets if hasattr(part, "targets") else part.labels).astype(np.int64)
            if images.ndim == 3:
                images = images[:, None]
            elif images.shape[-1] == 3:
                images = images.transpose(0, 3, 1, 2)
            parts.append(Split(images, labels))
        test, whole = parts
        return test, *_held_out(whole)

    return read


def _cifar10_jpeg(data_dir: Path | None, download: bool) -> tuple[Split, Split, Split]:
    """CIFAR-10 recompressed as JPEG, from cifar10-jpeg.zip: train/<class>/<n>.jpg and test/<class>/<n>.jpg.

    Not the original pixels, so a data set of its own. The order mixes the classes; a tenth of the training images is held out.
    """
    path = (data_dir if data_dir is not None else Path("data")) / "cifar10-jpeg.zip"
    if download and not path.exists():
        raise UsageError("cifar10-jpeg: has no public address to --download from; name the folder of its zip with --data-dir")
    try:
        archive = zipfile.ZipFile(path)
    except OSError as failure:
        raise CannotEvaluate(
            f"{path}: cannot be read ({failure.strerror}); name the folder of cifar10-jpeg.zip with --data-dir"
        ) from None
    except zipfile.BadZipFile as failure:
        raise DamagedData(f"{path}: not a zip archive ({failure})") from None
    with archive:
        files = sorted(each for each in archive.namelist() if each.endswith(".jpg"))
        classes = sorted({PurePosixPath(file).parent.name for file in files})
        if len(classes) != 10:
            raise DamagedData(f"{path}: holds images of {len(classes)} classes; CIFAR-10 has 10")
        parts = []
        for part in ("test", "train"):
            members = [file for file in files if file.startswith(f"{part}/")]
            if not members:
                raise DamagedData(f"{path}: holds no images {part}/<class>/<number>.jpg")
            images = np.stack([_member(path, archive, member, (3, 32, 32)) for member in members])
            labels = np.array([classes.index(PurePosixPath(member).parent.name) for member in members], dtype=np.int64)
            digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
            order = [index for _, index in sorted(zip(digests, range(len(members)), strict=True))]
            parts.append(Split(images[order], labels[order]))
    test, whole = parts
    return test, *_held_out(whole)


def _member(path: Path, archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> Array:
    try:
        content = archive.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error) as failure:
        raise DamagedData(f"{path}: {name} is damaged ({failure})") from None
    image = _read_image(io.BytesIO(content), f"{path}: {name}")
    if image.shape != shape:
        raise DamagedData(f"{path}: {name} has shape {image.shape}; it must be {shape}")
    return image


def _held_out(whole: Split) -> tuple[Split, Split]:
    """Training images, and the last tenth of them for validation."""
    held_out = len(whole) // 10
    first = len(whole) - held_out
    return Split(whole.images[:first], whole.labels[:first]), Split(whole.images[first:], whole.labels[first:])


_READERS: dict[str, Callable[[Path | None, bool], tuple[Split, Split, Split]]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST", lambda train: {"train": train}),
    "cifar10": _torchvision("CIFAR10", lambda train: {"train": train}),
    "cifar10-jpeg": _cifar10_jpeg,
    "svhn": _torchvision("SVHN", lambda train: {"split": "train" if train else "test"}),
}


def _read_npz(path: Path) -> tuple[tuple[Split, Split, Split], int]:
    try:
        content = path.open("rb")
    except OSError as failure:
        reason = "no such file" if isinstance(failure, FileNotFoundError) else f"cannot be read ({failure.strerror})"
        raise CannotEvaluate(
            f"{path}: {reason}; --data takes an npz file with x_test and y_test, or a folder of images"
        ) from None
    try:
        with content:
            archive = np.load(content, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise TypeError("it holds one array without a name")
            arrays = {key: archive[key] for key in ("x_test", "y_test", "x_train", "y_train") if key in archive}
    except Exception as failure:  # noqa: BLE001 - numpy and zipfile raise nearly anything on damaged files
        raise DamagedData(f"{path}: not a readable npz file of plain arrays ({failure})") from None
    for key in ("x_test", "y_test"):
        if key not in arrays:
            raise DamagedData(f"{path}: key {key!r} is missing; the file must hold x_test and y_test")
    test = _checked(path, "test", arrays["x_test"], arrays["y_test"])
    if ("x_train" in arrays) != ("y_train" in arrays):
        raise DamagedData(f"{path}: x_train and y_train come together, one of them is missing")
    train = _checked(path, "train", arrays["x_train"], arrays["y_train"]) if "x_train" in arrays else _none_like(test)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DamagedData(f"{path}: images are {train.images.shape[1:]} in x_train and {test.images.shape[1:]} in x_test")
    return (test, train, _none_like(test)), 1 + max(int(split.labels.max()) for split in (test, train) if len(split))


def _none_like(split: Split) -> Split:
    return Split(split.images[:0], split.labels[:0])


def _checked(path: Path, part: str, images: Array, labels: Array) -> Split:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DamagedData(
            f"{path}: x_{part} has shape {images.shape}; it must be (n, channels, height, width) with 1 or 3 channels"
        )
    if images.dtype == np.uint8:
        if images.size and images.max() == 1:
            raise DamagedData(
                f"{path}: x_{part} is uint8 and holds only 0 and 1; pixels go to 255, or must be floats in [0, 1]"
            )
    elif np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all():
            raise DamagedData(f"{path}: x_{part} holds NaN or infinity")
        if images.size and (images.min() < 0 or images.max() > 1):
            raise DamagedData(
                f"{path}: x_{part} ranges from {images.min():.6g} to {images.max():.6g}; floats must lie in [0, 1], "
                "pixels from 0 to 255 must be uint8"
            )
        images = images.astype(np.float32)
    else:
        raise DamagedData(f"{path}: x_{part} is {images.dtype}; it must be uint8, or floats in [0, 1]")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DamagedData(f"{path}: y_{part} is {labels.dtype} of shape {labels.shape}; it must be a row of integers")
    if len(labels) != len(images):
        raise DamagedData(f"{path}: {len(images)} images in x_{part}, {len(labels)} labels in y_{part}")
    if not images.size:
        raise DamagedData(f"{path}: x_{part} is empty")
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        odd = labels.min() if labels.min() < 0 else labels.max()
        raise DamagedData(f"{path}: y_{part} holds the label {odd}; labels count from 0, to {_MOST_CLASSES - 1} at most")
    return Split(images, labels.astype(np.int64))


def _read_folder(path: Path) -> tuple[tuple[Split, Split, Split], int]:
    """Of a folder with test/ and perhaps train/ these; otherwise the folder itself is the test split."""
    parts = {part: path / part for part in ("test", "train") if (path / part).is_dir()}
    if "test" not in parts:
        parts = {"test": path}
    found = {part: _read_classes(root) for part, root in parts.items()}
    test, classes = found["test"]
    train, train_classes = found.get("train", (_none_like(test), classes))
    if train_classes != classes:
        odd = ", ".join(sorted(set(classes) ^ set(train_classes)))
        raise DamagedData(f"{path}: test and train must have the same classes; only one of them has {odd}")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DamagedData(f"{path}: images are {train.images.shape[1:]} in train and {test.images.shape[1:]} in test")
    return (test, train, _none_like(test)), len(classes)


def _read_classes(root: Path) -> tuple[Split, list[str]]:
    """Images from one folder a class. Their order mixes the classes, so that the first n are a fair sample."""
    try:
        folder = import_torchvision().datasets.ImageFolder(str(root))
    except (OSError, RuntimeError) as failure:
        raise CannotEvaluate(f"{root}: {failure}; it must hold one folder of images for each class") from None
    # Folders within a class are taken for its own; where nothing else is in it, it is a split or the like.
    for name in folder.classes:
        if not any(each.is_file() for each in (root / name).iterdir()):
            raise DamagedData(
                f"{root / name}: holds folders and no images, so it is no class; name the folder that holds one folder of "
                "images for each class, or call the splits test and train"
            )
    images: list[Array] = []
    for file, _ in folder.samples:
        image = _read_image(Path(file), file)
        if images and image.shape != images[0].shape:
            raise DamagedData(f"{file}: has shape {image.shape}, the images before it {images[0].shape}; all must be equal")
        images.append(image)
    hashes = [sample_hash(_as_float(image), label) for image, label in zip(images, folder.targets, strict=True)]
    order = sorted(range(len(images)), key=lambda index: (hashes[index], index))
    split = Split(np.stack([images[index] for index in order]), np.asarray(folder.targets, dtype=np.int64)[order])
    return split, list(folder.classes)


def _read_image(file: Path | io.BytesIO, name: str) -> Array:
    """(c, h, w) as uint8: one channel if the file is grey, otherwise three. `name` is what errors call it."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode in ("1", "L"):
                return np.asarray(image.convert("L"), dtype=np.uint8)[None]
            if image.mode in ("P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"):
                return np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1)
            mode = image.mode
    except Exception as failure:  # noqa: BLE001 - image readers raise nearly anything on damaged files
        raise DamagedData(f"{name}: not a readable image ({failure})") from None
    raise DamagedData(f"{name}: has pixels of mode {mode}; they must have 8 bits")


def _as_float(images: Array) -> npt.NDArray[np.float32]:
    return (images.astype(np.float32) / np.float32(255)) if images.dtype == np.uint8 else images.astype(np.float32)
