"""Users' npz files: the accepted types, and the refusal of every other content."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import shared
from kwbench.data import load_dataset
from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.threat import ThreatModel
from support.data_sets import full_batch, images, load_npz


def test_npz_files_of_bytes_and_of_floats_give_the_same_images(tmp_path: Path) -> None:
    x, y = images(6), np.array([0, 2, 1, 4, 4, 0], dtype=np.uint8)
    dataset = load_npz(tmp_path, x_test=x, y_test=y, x_train=x[:3], y_train=y[:3].astype(np.int32))
    assert (dataset.name, dataset.classes, dataset.shape, dataset.fixed_classes) == ("own", 5, (3, 5, 6), False)
    assert (len(dataset.train), len(dataset.validation)) == (3, 0)
    batch = full_batch(dataset.test)
    assert torch.equal(batch.x, torch.from_numpy(x).float() / 255)
    assert batch.y.tolist() == y.tolist()
    for dtype in ("f4", ">f4", "f8"):
        same = full_batch(load_npz(tmp_path, x_test=(x / np.float32(255)).astype("f4").astype(dtype), y_test=y).test)
        assert same.samples == batch.samples
    assert load_npz(tmp_path, x_test=x[:, :1].astype("f2") / 255, y_test=y).shape == (1, 5, 6)


def test_the_number_of_classes_counts_the_training_labels_too(tmp_path: Path) -> None:
    assert load_npz(tmp_path, x_test=images(), y_test=[0, 1, 0, 1], x_train=images(2), y_train=[0, 7]).classes == 8


def test_a_compressed_npz_file_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "own.npz", x_test=images(), y_test=[0, 1, 2, 3])
    assert len(load_dataset("x", data=tmp_path / "own.npz").test) == 4


def test_a_users_data_takes_the_radius_of_the_named_data_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x_test=images(), y_test=[0, 1, 2, 3])
    assert load_dataset("svhn", data=tmp_path / "own.npz").threat == ThreatModel.of("linf", "0.047")
    assert load_dataset("anything", data=tmp_path / "own.npz").threat == ThreatModel.of("linf", "8/255")


GOOD: dict[str, Any] = {"x_test": images(), "y_test": np.arange(4)}


UNIT = images() / 255


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "key 'x_test' is missing"),
        ({"y_test": None}, "key 'y_test' is missing"),
        ({"x_test": images()[0]}, r"x_test has shape \(3, 5, 6\)"),
        ({"x_test": images(shape=(5, 6, 3))}, r"x_test has shape \(4, 5, 6, 3\).*channels"),
        ({"x_test": images(shape=(2, 5, 6))}, "1 or 3 channels"),
        ({"x_test": images().astype("f4")}, "x_test ranges from 0 to 255; .* must be uint8"),
        ({"x_test": UNIT - 0.5}, "x_test ranges from -0.5 to 0.5"),
        ({"x_test": UNIT + 1e-3}, r"x_test ranges from .* to 1.001"),
        ({"x_test": np.where(UNIT < 0.1, np.nan, UNIT)}, "x_test holds NaN or infinity"),
        ({"x_test": np.where(UNIT < 0.1, np.inf, UNIT)}, "x_test holds NaN or infinity"),
        ({"x_test": images().astype(np.int64)}, "x_test is int64; it must be uint8"),
        ({"x_test": images() > 100}, "x_test is bool"),
        ({"x_test": UNIT + 0j}, "x_test is complex128"),
        ({"y_test": np.array([0, 1, -1, 2])}, "y_test holds the label -1"),
        ({"y_test": np.array([0.0, 1, 2, 3])}, "y_test is float64"),
        ({"y_test": np.array(["a", "b", "c", "d"])}, "y_test is <U1"),
        ({"y_test": np.array([True, False, True, False])}, "y_test is bool"),
        ({"y_test": np.eye(4, dtype=int)}, r"of shape \(4, 4\)"),
        ({"y_test": np.arange(3)}, "4 images in x_test, 3 labels in y_test"),
        ({"x_test": images(0), "y_test": np.arange(0)}, "x_test is empty"),
        ({"x_test": images(4, (1, 0, 6))}, "x_test is empty"),
        ({"x_test": images() // 128}, "uint8 and holds only 0 and 1"),
        ({"y_test": np.array([0, 1, 2, 2**63], np.uint64)}, "label 9223372036854775808; labels count from 0, to 999999"),
        ({"x_train": images()}, "x_train and y_train come together"),
        ({"y_train": np.arange(4)}, "x_train and y_train come together"),
        ({"x_train": images(), "y_train": np.arange(3)}, "4 images in x_train, 3 labels in y_train"),
        ({"x_train": images(shape=(3, 6, 6)), "y_train": np.arange(4)}, r"\(3, 6, 6\) in x_train and \(3, 5, 6\) in x_test"),
    ],
)
def test_malformed_npz_files_are_refused_with_name_and_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(DamagedData, match=rf"own\.npz: .*{message}"):
        load_npz(tmp_path, **arrays)


def test_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match=r"none\.npz: no such file"):
        load_dataset("digits", data=tmp_path / "none.npz")


def test_pickled_arrays_are_refused_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "own.npz", x_test=np.array([Trap()], dtype=object), y_test=np.arange(1))
    with pytest.raises(DamagedData, match=r"own\.npz: not a readable npz file of plain arrays"):
        load_dataset("digits", data=tmp_path / "own.npz")
    (tmp_path / "own.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DamagedData, match="not a readable npz"):
        load_dataset("digits", data=tmp_path / "own.npz")
    assert not (tmp_path / "sprung").exists()


def test_files_of_other_formats_are_refused_as_npz(tmp_path: Path) -> None:
    file = tmp_path / "own.npz"
    for content in (b"", b"<!doctype html>", b"PK\x03\x04 and no more", b"\x93NUMPY"):
        file.write_bytes(content)
        with pytest.raises(DamagedData, match="not a readable npz"):
            load_dataset("digits", data=file)
    with file.open("wb") as stream:
        np.save(stream, images())
    with pytest.raises(DamagedData, match=r"not a readable npz.*holds one array without a name"):
        load_dataset("digits", data=file)


def test_a_changed_byte_in_an_npz_file_changes_no_sample_or_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "own.npz", **GOOD)
    content = (tmp_path / "own.npz").read_bytes()
    expected = full_batch(load_dataset("x", data=tmp_path / "own.npz").test).samples
    file = tmp_path / "flipped.npz"
    for position in range(0, len(content), 7):
        file.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            samples = full_batch(load_dataset("x", data=file).test).samples
        except DamagedData:
            continue
        assert samples == expected
    for length in range(0, len(content), 50):
        file.write_bytes(content[:length])
        with pytest.raises(DamagedData):
            load_dataset("x", data=file)


def test_real_cifar10_images_are_read_from_an_npz_file() -> None:
    dataset = load_dataset("cifar10", data=shared("data/cifar10-exact-subset.npz"))
    assert (dataset.classes, dataset.shape, len(dataset.test), len(dataset.train)) == (10, (3, 32, 32), 512, 4660)
    assert dataset.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert dataset.threat == ThreatModel.of("linf", "8/255")
    assert dataset.name == "cifar10-exact-subset", "the record must name the subset"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.npz")
    with pytest.raises(CannotEvaluate, match="a pipe or a device, not a file"):
        load_dataset("x", data=tmp_path / "own.npz")


def test_an_archive_that_expands_without_bound_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "own.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_test.npy", bytes(1 << 29))
    with pytest.raises(DamagedData, match="bytes expand to 536870912; images are compressed at most 100 times"):
        load_dataset("x", data=tmp_path / "own.npz")
