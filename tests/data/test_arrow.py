"""Folders that Hugging Face's datasets writes, read with pyarrow where it is installed."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kwbench.data import DataForm, load_dataset
from kwbench.errors import CannotEvaluate, DamagedData, UsageError

pyarrow = pytest.importorskip("pyarrow")

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(part: Path, columns: dict[str, list[Any]], names: list[str] | None = None) -> None:
    """Write a split as `save_to_disk` does: shards of the stream format, their list, and the features."""
    part.mkdir(parents=True)
    table = pyarrow.table(columns)
    files = []
    for number, shard in enumerate((table.slice(0, 4), table.slice(4))):
        files.append({"filename": f"data-{number:05}-of-00002.arrow"})
        with pyarrow.OSFile(str(part / files[-1]["filename"]), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
            out.write_table(shard)
    (part / "state.json").write_text(json.dumps({"_data_files": files, "_split": part.name}))
    label = {"_type": "ClassLabel", "names": names} if names else {"dtype": "int64", "_type": "Value"}
    (part / "dataset_info.json").write_text(json.dumps({"features": {"image": {"_type": "Image"}, "label": label}}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pets"
    for split in ("train", "test"):
        write(folder / split, {"image": [encoded(one) for one in PIXELS], "label": [0, 1, 2] * 2}, ["ant", "bee", "cat"])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return folder


def test_the_test_split_is_read_with_its_class_names(folder: Path) -> None:
    dataset = load_dataset("x", data=folder)
    assert np.array_equal(dataset.test.images, PIXELS.transpose(0, 3, 1, 2))
    assert dataset.test.labels.tolist() == [0, 1, 2] * 2
    assert (dataset.name, dataset.class_names, len(dataset.train)) == ("pets", ("ant", "bee", "cat"), 0)
    assert load_dataset("x", data=folder / "train", form=DataForm(center_crop=6)).shape == (3, 6, 6)


def test_pixels_in_lists_and_columns_of_other_names_are_read(tmp_path: Path) -> None:
    write(tmp_path / "set", {"pic": [one.tolist() for one in PIXELS], "kind": list(range(6))})
    dataset = load_dataset("x", data=tmp_path / "set", form=DataForm(keys=("pic", "kind")))
    assert np.array_equal(dataset.test.images, PIXELS.transpose(0, 3, 1, 2))
    with pytest.raises(UsageError, match="--keys IMAGES,LABELS must name its columns, which are pic, kind"):
        load_dataset("x", data=tmp_path / "set")


def test_what_is_damaged_or_missing_is_named(folder: Path) -> None:
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "extra"]}))
    with pytest.raises(CannotEvaluate, match="has the splits train, extra; name the folder of one"):
        load_dataset("x", data=folder)
    (folder / "test" / "data-00001-of-00002.arrow").write_bytes(b"no stream")
    with pytest.raises(DamagedData, match=r"data-00001-of-00002\.arrow: not a readable Arrow file"):
        load_dataset("x", data=folder / "test")
    (folder / "train" / "state.json").write_text("{")
    with pytest.raises(DamagedData, match=r"state\.json: not a readable file of JSON"):
        load_dataset("x", data=folder / "train")
