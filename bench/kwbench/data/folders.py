"""Users' own images from a folder with one folder of image files a class."""

import os
from pathlib import Path

import numpy as np

from kwbench.data.classes import ClassOrder, natural_order
from kwbench.data.dataset import Array, Split, Splits, as_float, sample_hash
from kwbench.data.form import AS_IT_IS, DataForm
from kwbench.data.images import read_image
from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.torchvision_schemas import import_torchvision


def read_folder(path: Path, order: ClassOrder | None = None, form: DataForm = AS_IT_IS) -> tuple[Splits, tuple[str, ...]]:
    """Return the splits, and the names of the classes by label; the validation split is empty.

    Labels follow `order`, by default the natural order of the names of the folders, in which 2 precedes 10.
    A folder that holds test/, and perhaps train/, has these splits. Of one that holds val/, as ImageNet's, this is the test
    split, and train/ is not read. Any other folder is the test split itself.

    Raises CannotEvaluate for a folder without classes, UsageError for one that `order` lacks, DamagedData for unreadable
    images, images of different sizes, and classes that differ between test and train.
    """
    parts = {part: path / part for part in ("test", "train") if (path / part).is_dir()}
    if "test" not in parts:
        validation = path / "val"
        holds_classes = validation.is_dir() and any(entry.is_dir() for entry in validation.iterdir())
        parts = {"test": validation if holds_classes else path}
    test, classes = _read_classes(parts["test"], order, form)
    train, train_classes = _read_classes(parts["train"], order, form) if "train" in parts else (test.empty(), classes)
    if train_classes != classes:
        unmatched = ", ".join(sorted(set(classes) ^ set(train_classes)))
        raise DamagedData(f"{path}: test and train must have the same classes; only one of them has {unmatched}")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DamagedData(f"{path}: images are {train.images.shape[1:]} in train and {test.images.shape[1:]} in test")
    names = tuple(classes) if order is None else tuple(names[0] for names in order.names)
    return (test, train, test.empty()), names


def _read_classes(root: Path, order: ClassOrder | None, form: DataForm) -> tuple[Split, list[str]]:
    """Return the images and the names of the classes. The images are sorted by hash, so that the first n mix the classes."""
    _require_each_folder_once(root)
    try:
        folder = import_torchvision().datasets.ImageFolder(str(root))
    except (OSError, RuntimeError) as failure:
        raise CannotEvaluate(f"{root}: {failure}; it must hold one folder of images for each class") from None
    # ImageFolder searches a class recursively. A "class" that holds only folders is probably a split.
    for name in folder.classes:
        if not any(entry.is_file() for entry in (root / name).iterdir()):
            raise DamagedData(
                f"{root / name}: holds folders and no images, so it is no class; name the folder that holds one folder of "
                "images for each class, or call the splits test and train"
            )
    names = natural_order(folder.classes)
    by_name = dict(zip(names, range(len(names)) if order is None else order.labels(names), strict=True))
    labels = [by_name[folder.classes[target]] for target in folder.targets]
    images: list[Array] = []
    for file, _ in folder.samples:
        image = form.shaped(read_image(Path(file), file), file)
        if images and image.shape != images[0].shape:
            raise DamagedData(
                f"{file}: has shape {image.shape}, the images before it {images[0].shape}; all must be equal: "
                "--resize and --center-crop make them so"
            )
        images.append(image)
    hashes = [sample_hash(as_float(image), label) for image, label in zip(images, labels, strict=True)]
    shuffled = sorted(range(len(images)), key=lambda index: (hashes[index], index))
    split = Split(np.stack([images[index] for index in shuffled]), np.asarray(labels, dtype=np.int64)[shuffled])
    return split, names


def _require_each_folder_once(root: Path) -> None:
    """Raise DamagedData if links lead to a folder twice: a reader that follows them might never end."""
    seen: dict[tuple[int, int], str] = {}
    waiting = [str(root)]
    while waiting:
        path = waiting.pop()
        try:
            state = os.stat(path)
            with os.scandir(path) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir()]
        except OSError:  # the reader raises it again
            continue
        first = seen.setdefault((state.st_dev, state.st_ino), path)
        if first != path:
            raise DamagedData(f"{path}: leads to the folder {first} again; remove the link, each folder may occur once")
