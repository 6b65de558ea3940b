"""Data sets, by the name that users type, or from users' own files, folders and arrays.

A new data set is a file in this folder that defines a `Reader`, and a line in DATA_SETS.
"""

from pathlib import Path

from kwbench.data.arrays import dataset_from_arrays, infer_classes
from kwbench.data.arrow import is_arrow_folder, read_arrow
from kwbench.data.cifar10_jpeg import read_cifar10_jpeg
from kwbench.data.classes import read_class_order
from kwbench.data.dataset import (
    DEFAULT_THREAT,
    Array,
    Batch,
    DataSet,
    DataSetSpec,
    Reader,
    Split,
    Splits,
    sample_hash,
    slice_hash,
)
from kwbench.data.digits import read_digits
from kwbench.data.folders import read_folder
from kwbench.data.form import AS_IT_IS, DataForm
from kwbench.data.npy import corruptions, read_npy
from kwbench.data.npz import read_npz
from kwbench.data.torchvision_sets import read_cifar10, read_cifar100, read_mnist, read_svhn
from kwbench.errors import UsageError, did_you_mean
from kwbench.threat import ThreatModel

__all__ = [
    "AS_IT_IS",
    "DATA_SETS",
    "DEFAULT_THREAT",
    "Array",
    "Batch",
    "DataForm",
    "DataSet",
    "DataSetSpec",
    "Reader",
    "Split",
    "Splits",
    "dataset_from_arrays",
    "dataset_names",
    "load_dataset",
    "sample_hash",
    "slice_hash",
]

DATA_SETS: dict[str, DataSetSpec] = {
    spec.name: spec
    for spec in (
        # The radius was chosen on the validation split; docs/pages/explanation/numbers.md says how.
        DataSetSpec("digits", read_digits, (1, 8, 8), 10, ThreatModel.of("linf", "0.2")),
        # The radius of xiao2020 D.4.
        DataSetSpec("mnist", read_mnist, (1, 28, 28), 10, ThreatModel.of("linf", "0.3")),
        DataSetSpec("cifar10", read_cifar10, (3, 32, 32), 10, ThreatModel.of("linf", "8/255")),
        DataSetSpec("cifar100", read_cifar100, (3, 32, 32), 100, ThreatModel.of("linf", "8/255")),
        DataSetSpec("cifar10-jpeg", read_cifar10_jpeg, (3, 32, 32), 10, ThreatModel.of("linf", "8/255")),
        # The radius of xiao2020 4.1.
        DataSetSpec("svhn", read_svhn, (3, 32, 32), 10, ThreatModel.of("linf", "0.047")),
    )
}


def dataset_names() -> list[str]:
    """Return the names of the data sets."""
    return list(DATA_SETS)


def load_dataset(
    name: str,
    *,
    data: Path | None = None,
    classes: Path | None = None,
    data_dir: Path | None = None,
    download: bool = False,
    form: DataForm = AS_IT_IS,
) -> DataSet:
    """Load a data set by name, or from `data`: an npz or npy file, a folder of images, or one of Hugging Face's datasets.

    Args:
        name: With `data`, only the default threat model is that of the data set of this name.
        classes: With a folder, a file that lists the classes in the order of their labels.
        data_dir: Where the files of named data sets lie; `data` in the working folder by default.
        download: Download missing files of a named data set.
        form: How `data` is read.

    Raises UsageError for an unknown name, CannotEvaluate for missing files, DamagedData for files of another content.
    """
    if classes is not None and (data is None or not data.is_dir()):
        raise UsageError(f"--classes {classes}: it orders the folders of images that --data names; other labels are numbers")
    if data is not None:
        threat = DATA_SETS[name].threat if name in DATA_SETS else DEFAULT_THREAT
        if not data.is_dir():
            splits, count = read_npy(data, form) if data.suffix == ".npy" else read_npz(data, form)
            title = data.stem if form.severity is None else f"{data.stem}-{form.severity}"
            return DataSet(title, count, *splits, threat=threat, fixed_classes=False)
        if files := corruptions(data):
            raise UsageError(f"--data {data}: name one of its files: {', '.join(str(data / file) for file in files[:5])}")
        if is_arrow_folder(data):
            splits, names = read_arrow(data, form)
            count = max(len(names), infer_classes(splits[0]))
            return DataSet(data.name, count, *splits, threat=threat, fixed_classes=False, class_names=names)
        splits, names = read_folder(data, None if classes is None else read_class_order(classes), form)
        return DataSet(data.stem, len(names), *splits, threat=threat, fixed_classes=False, class_names=names)
    if form != AS_IT_IS:
        raise UsageError("--resize, --center-crop, --keys, --severity: are for images of your own, which --data names")
    if name not in DATA_SETS:
        raise UsageError(f"data set {name!r} is unknown; {did_you_mean(name, DATA_SETS)}; --data reads your own files")
    spec = DATA_SETS[name]
    splits = spec.read(data_dir if data_dir is not None else Path("data"), download)
    return DataSet(spec.name, spec.classes, *splits, threat=spec.threat, reader_revision=spec.revision)
