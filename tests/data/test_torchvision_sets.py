"""MNIST, CIFAR-10 and SVHN: read from files in the original formats; never downloaded without permission."""

import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from conftest import shared
from kwbench.data import DATA_SETS, load_dataset
from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.threat import ThreatModel
from kwbench.torchvision_schemas import import_torchvision
from support.data_sets import full_batch, images


def write_mnist(root: Path, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    x, y = images(n, (28, 28)), np.arange(n, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + x.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + y.tobytes())
    return x, y


def test_mnist_is_read_from_its_own_format(tmp_path: Path) -> None:
    x, y = write_mnist(tmp_path)
    dataset = load_dataset("mnist", data_dir=tmp_path)
    assert (dataset.name, dataset.classes, dataset.shape) == ("mnist", 10, (1, 28, 28))
    assert dataset.threat == ThreatModel.of("linf", 0.3)
    batch = full_batch(dataset.test)
    assert torch.equal(batch.x[:, 0], torch.from_numpy(x).float() / 255)
    assert batch.y.tolist() == y.tolist()
    assert (len(dataset.train), len(dataset.validation)) == (27, 3)
    assert not set(full_batch(dataset.train).samples) & set(full_batch(dataset.validation).samples)


def test_damaged_mnist_files_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = file.read_bytes()
    for damage in (b"", b"<!doctype html>", content[:10], content[:-1], gzip.compress(content)):
        file.write_bytes(damage)
        with pytest.raises(DamagedData, match=r"MNIST: a file under .* is damaged"):
            load_dataset("mnist", data_dir=tmp_path)


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write files in the format of CIFAR-10, and replace torchvision's list of MD5 sums by theirs."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data_set_class = import_torchvision().datasets.CIFAR10
    md5_sums = {}
    names = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch", "batches.meta"]
    for index, name in enumerate(names):
        entry = {"data": images(4, (3072,), seed=index), "labels": [0, 1, 2, 9]}
        content = pickle.dumps({"label_names": [str(label) for label in range(10)]} if name == "batches.meta" else entry)
        (folder / name).write_bytes(content)
        md5_sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(data_set_class, "train_list", [[name, md5_sums[name]] for name in names[:5]])
    monkeypatch.setattr(data_set_class, "test_list", [["test_batch", md5_sums["test_batch"]]])
    monkeypatch.setattr(data_set_class, "meta", data_set_class.meta | {"md5": md5_sums["batches.meta"]})
    return tmp_path


def test_cifar10_is_read_from_its_own_format(small_cifar: Path) -> None:
    dataset = load_dataset("cifar10", data_dir=small_cifar)
    assert (dataset.shape, dataset.threat, len(dataset.train), len(dataset.validation)) == (
        (3, 32, 32),
        DATA_SETS["cifar10"].threat,
        18,
        2,
    )
    assert np.array_equal(dataset.test.images, images(4, (3072,), seed=5).reshape(4, 3, 32, 32))
    assert full_batch(dataset.test).y.tolist() == [0, 1, 2, 9]


def test_a_damaged_cifar10_file_is_refused_before_it_is_unpickled(small_cifar: Path) -> None:
    file = small_cifar / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CannotEvaluate, match="CIFAR10: cannot be read under"):
        load_dataset("cifar10", data_dir=small_cifar)


def test_cifar100_is_read_with_its_fine_labels_and_damage_is_found_before_unpickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data_set_class = import_torchvision().datasets.CIFAR100
    md5_sums = {}
    for index, name in enumerate(("train", "test", "meta")):
        entry: dict[str, Any] = {
            "data": images(20, (3072,), seed=index),
            "fine_labels": [0, 99] * 10,
            "coarse_labels": [0] * 20,
        }
        content = pickle.dumps({"fine_label_names": [str(label) for label in range(100)]} if name == "meta" else entry)
        (folder / name).write_bytes(content)
        md5_sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(data_set_class, "train_list", [["train", md5_sums["train"]]])
    monkeypatch.setattr(data_set_class, "test_list", [["test", md5_sums["test"]]])
    monkeypatch.setattr(data_set_class, "meta", data_set_class.meta | {"md5": md5_sums["meta"]})
    dataset = load_dataset("cifar100", data_dir=tmp_path)
    assert (dataset.shape, dataset.classes, len(dataset.train), len(dataset.validation)) == ((3, 32, 32), 100, 18, 2)
    assert np.array_equal(dataset.test.images, images(20, (3072,), seed=1).reshape(20, 3, 32, 32))
    assert dataset.test.labels.tolist() == [0, 99] * 10
    (folder / "test").write_bytes(b"changed")
    with pytest.raises(CannotEvaluate, match="CIFAR100: cannot be read under"):
        load_dataset("cifar100", data_dir=tmp_path)


@pytest.fixture
def small_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data_set_class = import_torchvision().datasets.SVHN
    sources = {}
    for index, part in enumerate(("train", "test")):
        file = tmp_path / f"{part}_32x32.mat"
        y = (np.arange(20, dtype=np.uint8) % 10 + 1)[:, None]  # SVHN writes 10 for the digit 0
        savemat(file, {"X": images(20, (32, 32, 3), seed=index).transpose(1, 2, 3, 0), "y": y})
        sources[part] = ["https://nowhere.invalid/", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(data_set_class, "split_list", sources)
    return tmp_path


def test_svhn_is_read_from_its_own_format(small_svhn: Path) -> None:
    dataset = load_dataset("svhn", data_dir=small_svhn)
    assert (dataset.shape, dataset.threat, len(dataset.train)) == ((3, 32, 32), DATA_SETS["svhn"].threat, 18)
    batch = full_batch(dataset.test)
    expected = torch.from_numpy(images(20, (32, 32, 3), seed=1)).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(batch.x, expected)
    assert batch.y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_nothing_is_downloaded_unless_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("asked for the network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(CannotEvaluate, match="--data-dir, or add --download") as refusal:
        load_dataset(name, data_dir=tmp_path)
    assert "asked for the network" not in str(refusal.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CannotEvaluate, match="cannot be read") as refusal:
        load_dataset(name, data_dir=tmp_path, download=True)
    assert "asked for the network" in str(refusal.value) or "downloading" in str(refusal.value).lower()


def test_the_real_mnist_is_read() -> None:
    dataset = load_dataset("mnist", data_dir=shared("data/MNIST").parent)
    assert (len(dataset.test), len(dataset.train), len(dataset.validation)) == (10_000, 54_000, 6_000)
    batch = dataset.test.batch(range(1000))
    assert batch.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert len(set(batch.samples)) == 1000
