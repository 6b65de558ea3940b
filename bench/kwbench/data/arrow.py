"""Data sets of Hugging Face's datasets, as `save_to_disk` writes them: folders of Arrow files, read with pyarrow."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from kwbench.data.dataset import Array, Split, Splits
from kwbench.data.form import DataForm
from kwbench.data.images import read_image
from kwbench.errors import CannotEvaluate, DamagedData, UsageError

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
# Names of the columns, in the order of preference.
_IMAGES, _LABELS = ("image", "img", "x", "pixel_values"), ("label", "labels", "fine_label", "y")


def is_arrow_folder(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder: a data set, or a dictionary of its splits."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def read_arrow(folder: Path, form: DataForm) -> tuple[Splits, tuple[str, ...]]:
    """Return the splits, and the names of the classes by label; the test split is `test`, `validation` or the only one.

    Training images are not read, since attacks need none and they may be many.

    Raises CannotEvaluate without pyarrow or a split to test on, DamagedData for files of another content, UsageError for
    images of different sizes or columns that are not there.
    """
    part = folder if (folder / _STATE).is_file() else _chosen(folder)
    table = _table(part)
    images, labels = _columns(part, table.column_names, form)
    features = _json(part / _INFO).get("features", {})
    names = features.get(labels, {}).get("names") if isinstance(features.get(labels), dict) else None
    pictures = [_picture(value, form, f"{part}: row {row}") for row, value in enumerate(table.column(images).to_pylist())]
    if len({picture.shape for picture in pictures}) > 1:
        shapes = " and ".join(str(shape) for shape in sorted({picture.shape for picture in pictures})[:2])
        raise UsageError(f"{part}: images have shapes {shapes}; --resize and --center-crop make them equal")
    numbers = np.asarray(table.column(labels).to_pylist())
    if not pictures or not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0:
        raise DamagedData(f"{part}: {labels}: there must be one integer from 0 for each image")
    test = Split(np.stack(pictures), numbers.astype(np.int64))
    return (test, test.empty(), test.empty()), tuple(map(str, names or ()))


def _chosen(folder: Path) -> Path:
    splits = list(_json(folder / _SPLITS).get("splits", []))
    for name in ("test", "validation", "val"):
        if name in splits:
            return folder / name
    if len(splits) == 1:
        return folder / str(splits[0])
    raise CannotEvaluate(f"{folder}: has the splits {', '.join(map(str, splits)) or 'none'}; name the folder of one of them")


def _table(part: Path) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise CannotEvaluate(f"{part}: needs pyarrow; pip install 'kwbench[arrow]'") from None
    tables = []
    for entry in _json(part / _STATE).get("_data_files", []):
        file = part / str(entry.get("filename"))
        try:
            with pyarrow.memory_map(str(file)) as source:
                tables.append(pyarrow.ipc.open_stream(source).read_all())
        except (OSError, pyarrow.ArrowInvalid) as failure:
            raise DamagedData(f"{file}: not a readable Arrow file ({failure})") from None
    if not tables:
        raise DamagedData(f"{part / _STATE}: names no file of data")
    return pyarrow.concat_tables(tables)


def _columns(part: Path, known: list[str], form: DataForm) -> tuple[str, str]:
    """Return the names of the columns of images and labels."""
    wanted = [(name,) for name in form.keys] if form.keys is not None else [_IMAGES, _LABELS]
    chosen = [next((name for name in names if name in known), None) for names in wanted]
    if chosen[0] is None or chosen[1] is None:
        raise UsageError(f"{part}: --keys IMAGES,LABELS must name its columns, which are {', '.join(known)}")
    return chosen[0], chosen[1]


def _picture(value: Any, form: DataForm, name: str) -> Array:
    """Return an image (c, h, w), uint8, of a cell: an encoded image with its bytes or path, or nested lists of pixels."""
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        if content is None and path is None:
            raise DamagedData(f"{name}: holds neither the bytes nor the path of an image")
        return form.shaped(read_image(io.BytesIO(content) if content is not None else Path(str(path)), name), name)
    pixels = np.asarray(value)
    if pixels.dtype.kind not in "iu" or pixels.ndim not in (2, 3) or pixels.min() < 0 or pixels.max() > 255:
        raise DamagedData(f"{name}: is no image: neither encoded nor pixels from 0 to 255")
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    whole = pixels.transpose(2, 0, 1) if pixels.shape[0] not in (1, 3) else pixels
    return form.shaped(whole.astype(np.uint8), name)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise DamagedData(f"{path}: not a readable file of JSON ({failure})") from None
    return value if isinstance(value, dict) else {}
