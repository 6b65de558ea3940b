"""CIFAR-10 recompressed as JPEG. Its pixels are not those of CIFAR-10, so it is a data set of its own."""

import hashlib
import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from kwbench.data.dataset import Array, Split, Splits
from kwbench.data.images import read_image
from kwbench.errors import CannotEvaluate, DamagedData, UsageError

_SHAPE = (3, 32, 32)


def read_cifar10_jpeg(folder: Path, download: bool) -> Splits:
    """Return the images of `folder`/cifar10-jpeg.zip: train/<class>/<n>.jpg and test/<class>/<n>.jpg.

    The order is that of the images' hashes, which mixes the classes. The last tenth of the training images is held out.

    Raises UsageError if `download` is asked for and the zip is missing, because it has no public address.
    """
    path = folder / "cifar10-jpeg.zip"
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
        files = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({_class_of(file) for file in files})
        if len(classes) != 10:
            raise DamagedData(f"{path}: holds images of {len(classes)} classes; CIFAR-10 has 10")
        test, train = (_read_part(path, archive, files, classes, part) for part in ("test", "train"))
    return test, *train.hold_out_tenth()


def _read_part(path: Path, archive: zipfile.ZipFile, files: list[str], classes: list[str], part: str) -> Split:
    members = [file for file in files if file.startswith(f"{part}/")]
    if not members:
        raise DamagedData(f"{path}: holds no images {part}/<class>/<number>.jpg")
    images = np.stack([_read_member(path, archive, member) for member in members])
    labels = np.array([classes.index(_class_of(member)) for member in members], dtype=np.int64)
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = [index for _, index in sorted(zip(digests, range(len(members)), strict=True))]
    return Split(images[order], labels[order])


def _class_of(file: str) -> str:
    return PurePosixPath(file).parent.name


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> Array:
    try:
        content = archive.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error) as failure:
        raise DamagedData(f"{path}: {name} is damaged ({failure})") from None
    image = read_image(io.BytesIO(content), f"{path}: {name}")
    if image.shape != _SHAPE:
        raise DamagedData(f"{path}: {name} has shape {image.shape}; it must be {_SHAPE}")
    return image
