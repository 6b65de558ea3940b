"""Data sets: the digits and their splits, other formats, and the refusal of everything that is not what it should be."""

import gzip
import hashlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from conftest import shared
from kwbench.data import DATA_SETS, Batch, DataSet, Split, dataset_names, load_dataset, sample_hash, slice_hash
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.threat import ThreatModel
from kwbench.torchvision_schemas import import_torchvision

# A change here would make all digits results on record incomparable with new ones.
DIGITS = {
    "test": (360, "60c4a45f3bef6dfe04a3d5690297cba6d53c4155cc779239eb7992e5dd34f9a8"),
    "train": (1257, "bf75d433c5831f71e94e849f0544a9a1b6fb424ffd7c77591d1cc912949c3790"),
    "validation": (180, "b9ba404a10a3aa93932ee67a7d656c5c72165bb844ecb8c566528a2c157195db"),
}


def whole(split: Split) -> Batch:
    return split.batch(range(len(split)))


def from_npz(folder: Path, **arrays: Any) -> DataSet:
    np.savez(folder / "own.npz", **arrays)
    return load_dataset("digits", data=folder / "own.npz")


def images(n: int = 4, shape: tuple[int, ...] = (3, 5, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


# The digits


@pytest.mark.parametrize("part", DIGITS)
def test_the_splits_of_the_digits_never_change(part: str) -> None:
    split = getattr(load_dataset("digits"), part)
    assert (len(split), slice_hash(whole(split).samples)) == DIGITS[part]


def test_the_splits_of_the_digits_are_disjoint_stratified_and_complete() -> None:
    dataset = load_dataset("digits")
    batches = {part: whole(getattr(dataset, part)) for part in DIGITS}
    every = [sample for batch in batches.values() for sample in batch.samples]
    assert len(every) == len(set(every)) == 1797
    assert torch.bincount(batches["test"].y).tolist() == [36] * 10
    assert torch.bincount(batches["validation"].y).tolist() == [18] * 10
    pixels = [batch.x.flatten(1) for batch in batches.values()]
    assert len(torch.cat(pixels).unique(dim=0)) == 1797, "the same image in two splits"  # type: ignore[no-untyped-call]


def test_the_digits_are_the_images_of_scikit_learn_in_0_to_1() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    known = {
        sample_hash((image.reshape(1, 8, 8) / 16).astype("f4"), int(label)) for image, label in zip(pixels, labels, strict=True)
    }
    dataset = load_dataset("digits")
    assert (dataset.name, dataset.classes, dataset.shape, dataset.fixed_classes) == ("digits", 10, (1, 8, 8), True)
    batch = whole(dataset.test)
    assert set(batch.samples) <= known
    assert batch.x.dtype == torch.float32
    assert (batch.x.min().item(), batch.x.max().item()) == (0, 1)
    assert batch.y.dtype == torch.int64


def test_the_first_digits_are_a_mixture_of_classes_and_the_same_on_each_load() -> None:
    first, second = (load_dataset("digits").test.batch(range(50)) for _ in range(2))
    assert first.samples == second.samples
    assert torch.equal(first.x, second.x)
    assert len(first.y.unique()) == 10  # type: ignore[no-untyped-call]


def test_the_digits_are_the_same_by_way_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kwbench.data.digits.find_spec", lambda _: None)
    test = load_dataset("digits").test
    assert (len(test), slice_hash(whole(test).samples)) == DIGITS["test"]


# Batches


def test_batches_are_cut_and_reordered_with_everything_in_step() -> None:
    batch = load_dataset("digits").test.batch(range(7))
    assert [len(tile) for tile in batch.tiles(3)] == [3, 3, 1]
    assert sum((tile.samples for tile in batch.tiles(3)), ()) == batch.samples
    chosen = batch.take([5, 0])
    assert chosen.samples == (batch.samples[5], batch.samples[0])
    assert chosen.indices == (5, 0)
    assert torch.equal(chosen.x, batch.x[[5, 0]])
    assert chosen.y.tolist() == [batch.y[5], batch.y[0]]
    assert chosen.to("cpu").samples == chosen.samples


def test_a_sample_is_known_by_its_pixels_and_its_label_whatever_its_memory_layout() -> None:
    image = np.random.default_rng(0).random((3, 4, 5)).astype("f4")
    assert sample_hash(image, 3) == sample_hash(np.asfortranarray(image), 3) == sample_hash(image.astype(">f4"), 3)
    other = image.copy()
    other[2, 3, 4] = np.nextafter(other[2, 3, 4], np.float32(1))
    assert len({sample_hash(image, 3), sample_hash(image, 4), sample_hash(other, 3)}) == 3
    expected = hashlib.sha256(image.astype("<f4").tobytes() + (3).to_bytes(8, "little")).hexdigest()[:32]
    assert sample_hash(image, 3) == expected


def test_equal_samples_of_a_data_set_stay_apart(tmp_path: Path) -> None:
    x = np.repeat(images(1), 4, axis=0)
    found = whole(from_npz(tmp_path, x_test=x, y_test=[0, 0, 1, 0]).test)
    assert len(set(found.samples)) == 4
    assert found.samples[0] == sample_hash(found.x[0].numpy(), 0)
    assert found.samples[2] == sample_hash(found.x[0].numpy(), 1)
    assert whole(from_npz(tmp_path, x_test=x, y_test=[0, 0, 1, 0]).test).samples == found.samples


def test_slices_are_known_by_their_samples_and_their_order() -> None:
    assert slice_hash(["a", "b"]) != slice_hash(["b", "a"])


# Names


def test_unknown_data_sets_come_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="'cifar' is unknown; did you mean 'cifar10'"):
        load_dataset("cifar")
    assert set(dataset_names()) == {"digits", "mnist", "cifar10", "cifar10-jpeg", "svhn"}


# npz files


def test_npz_files_of_bytes_and_of_floats_are_the_same_images(tmp_path: Path) -> None:
    x, y = images(6), np.array([0, 2, 1, 4, 4, 0], dtype=np.uint8)
    found = from_npz(tmp_path, x_test=x, y_test=y, x_train=x[:3], y_train=y[:3].astype(np.int32))
    assert (found.name, found.classes, found.shape, found.fixed_classes) == ("own", 5, (3, 5, 6), False)
    assert (len(found.train), len(found.validation)) == (3, 0)
    batch = whole(found.test)
    assert torch.equal(batch.x, torch.from_numpy(x).float() / 255)
    assert batch.y.tolist() == y.tolist()
    for dtype in ("f4", ">f4", "f8"):
        same = whole(from_npz(tmp_path, x_test=(x / np.float32(255)).astype("f4").astype(dtype), y_test=y).test)
        assert same.samples == batch.samples
    assert from_npz(tmp_path, x_test=x[:, :1].astype("f2") / 255, y_test=y).shape == (1, 5, 6)


def test_the_number_of_classes_counts_the_training_labels_too(tmp_path: Path) -> None:
    assert from_npz(tmp_path, x_test=images(), y_test=[0, 1, 0, 1], x_train=images(2), y_train=[0, 7]).classes == 8


def test_a_compressed_npz_file_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "own.npz", x_test=images(), y_test=[0, 1, 2, 3])
    assert len(load_dataset("x", data=tmp_path / "own.npz").test) == 4


def test_data_of_ones_own_is_attacked_at_the_radius_of_the_data_set_named(tmp_path: Path) -> None:
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
def test_npz_files_are_refused_by_name_and_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(DamagedData, match=rf"own\.npz: .*{message}"):
        from_npz(tmp_path, **arrays)


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


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.npz"
    for content in (b"", b"<!doctype html>", b"PK\x03\x04 and no more", b"\x93NUMPY"):
        file.write_bytes(content)
        with pytest.raises(DamagedData, match="not a readable npz"):
            load_dataset("digits", data=file)
    with file.open("wb") as stream:
        np.save(stream, images())
    with pytest.raises(DamagedData, match=r"not a readable npz.*holds one array without a name"):
        load_dataset("digits", data=file)


def test_an_npz_file_with_any_byte_changed_is_either_the_same_or_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "own.npz", **GOOD)
    content = (tmp_path / "own.npz").read_bytes()
    expected = whole(load_dataset("x", data=tmp_path / "own.npz").test).samples
    file = tmp_path / "flipped.npz"
    for place in range(0, len(content), 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = whole(load_dataset("x", data=file).test).samples
        except DamagedData:
            continue
        assert found == expected
    for length in range(0, len(content), 50):
        file.write_bytes(content[:length])
        with pytest.raises(DamagedData):
            load_dataset("x", data=file)


# Folders of images


def write_images(
    root: Path, classes: dict[str, int], *, mode: str = "RGB", size: tuple[int, int] = (6, 5), seed: int = 0
) -> None:
    rng = np.random.default_rng(seed)
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    for name, n in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(n):
            pixels = rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
            Image.fromarray(pixels, mode=None).save(root / name / f"{index:03}.png")


def test_a_folder_of_images_is_read_with_its_classes_in_alphabetical_order(tmp_path: Path) -> None:
    write_images(tmp_path / "own", {"cat": 20, "ant": 20, "bee": 1})
    found = load_dataset("digits", data=tmp_path / "own")
    assert (found.name, found.classes, found.shape, found.fixed_classes) == ("own", 3, (3, 5, 6), False)
    assert np.bincount(found.test.labels).tolist() == [20, 1, 20]
    assert len(found.train) == 0
    for name, label in (("ant", 0), ("cat", 2)):
        pixels = np.asarray(Image.open(tmp_path / "own" / name / "000.png")).transpose(2, 0, 1)
        (row,) = np.flatnonzero((found.test.images == pixels).all(axis=(1, 2, 3)))
        assert found.test.labels[row] == label


def test_the_first_images_of_a_folder_are_a_mixture_of_its_classes(tmp_path: Path) -> None:
    write_images(tmp_path, {"ant": 30, "cat": 30})
    first = load_dataset("x", data=tmp_path).test.batch(range(20))
    assert 4 <= int(first.y.sum()) <= 16
    assert load_dataset("x", data=tmp_path).test.batch(range(20)).samples == first.samples


def test_a_folder_may_hold_test_and_train(tmp_path: Path) -> None:
    write_images(tmp_path / "test", {"ant": 2, "cat": 2})
    write_images(tmp_path / "train", {"ant": 3, "cat": 3}, seed=1)
    found = load_dataset("x", data=tmp_path)
    assert (len(found.test), len(found.train), found.classes) == (4, 6, 2)


def test_test_and_train_must_have_the_same_classes_and_sizes(tmp_path: Path) -> None:
    write_images(tmp_path / "test", {"ant": 2, "cat": 2})
    write_images(tmp_path / "train", {"ant": 2, "bee": 2, "cat": 2})
    # Counted apart, cat would be class 1 of the one and class 2 of the other.
    with pytest.raises(DamagedData, match="same classes; only one of them has bee"):
        load_dataset("x", data=tmp_path)
    write_images(tmp_path / "test", {"bee": 2})
    write_images(tmp_path / "train", {"ant": 2, "bee": 2, "cat": 2}, size=(7, 7))
    with pytest.raises(DamagedData, match="in train and"):
        load_dataset("x", data=tmp_path)


def test_grey_images_stay_grey_and_transparency_is_dropped(tmp_path: Path) -> None:
    write_images(tmp_path / "grey", {"a": 2, "b": 2}, mode="L")
    assert load_dataset("x", data=tmp_path / "grey").shape == (1, 5, 6)
    write_images(tmp_path / "alpha", {"a": 2, "b": 2}, mode="RGBA")
    assert load_dataset("x", data=tmp_path / "alpha").shape == (3, 5, 6)


def test_images_of_16_bits_are_refused_because_they_would_be_clipped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((5, 6), 40000, dtype=np.uint16)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(DamagedData, match=r"deep\.png: has pixels of mode I"):
        load_dataset("x", data=tmp_path)


def test_images_of_different_sizes_are_refused_by_name(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 2})
    write_images(tmp_path, {"b": 1}, size=(6, 6))
    with pytest.raises(DamagedData, match=r"b.000\.png: has shape \(3, 6, 6\), the images before it \(3, 5, 6\)"):
        load_dataset("x", data=tmp_path)


def test_damaged_images_are_refused_by_name(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 1, "b": 1}, size=(40, 40))
    victim = tmp_path / "b" / "000.png"
    content = victim.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for damage in (b"", b"<html>", content[:200], content[: len(content) // 2], bytes(flipped)):
        victim.write_bytes(damage)
        with pytest.raises(DamagedData, match=r"b.000\.png: not a readable image"):
            load_dataset("x", data=tmp_path)


def test_folders_without_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match="one folder of images for each class"):
        load_dataset("x", data=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CannotEvaluate, match="one folder of images for each class"):
        load_dataset("x", data=tmp_path)


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "own" / "train", {"a": 2, "b": 2})
    with pytest.raises(DamagedData, match=r"own.train: holds folders and no images, so it is no class.*test and train"):
        load_dataset("x", data=tmp_path / "own")
    write_images(tmp_path / "own" / "val", {"a": 2, "b": 2})
    with pytest.raises(DamagedData, match=r"own.(train|val): holds folders and no images"):
        load_dataset("x", data=tmp_path / "own")
    assert load_dataset("x", data=tmp_path / "own" / "val").classes == 2


# torchvision's data sets, in files of their formats


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
    found = load_dataset("mnist", data_dir=tmp_path)
    assert (found.name, found.classes, found.shape) == ("mnist", 10, (1, 28, 28))
    assert found.threat == ThreatModel.of("linf", 0.3)
    batch = whole(found.test)
    assert torch.equal(batch.x[:, 0], torch.from_numpy(x).float() / 255)
    assert batch.y.tolist() == y.tolist()
    assert (len(found.train), len(found.validation)) == (27, 3)
    assert not set(whole(found.train).samples) & set(whole(found.validation).samples)


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
    """Files in the format of CIFAR-10, and torchvision's list of their MD5 sums beside them."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    kind = import_torchvision().datasets.CIFAR10
    sums = {}
    names = [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch", "batches.meta"]
    for index, name in enumerate(names):
        entry = {"data": images(4, (3072,), seed=index), "labels": [0, 1, 2, 9]}
        content = pickle.dumps({"label_names": [str(each) for each in range(10)]} if name == "batches.meta" else entry)
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    return tmp_path


def test_cifar10_is_read_from_its_own_format(small_cifar: Path) -> None:
    found = load_dataset("cifar10", data_dir=small_cifar)
    assert (found.shape, found.threat, len(found.train), len(found.validation)) == (
        (3, 32, 32),
        DATA_SETS["cifar10"].threat,
        18,
        2,
    )
    assert np.array_equal(found.test.images, images(4, (3072,), seed=5).reshape(4, 3, 32, 32))
    assert whole(found.test).y.tolist() == [0, 1, 2, 9]


def test_a_damaged_cifar10_file_is_refused_before_it_is_unpickled(small_cifar: Path) -> None:
    file = small_cifar / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CannotEvaluate, match="CIFAR10: cannot be read under"):
        load_dataset("cifar10", data_dir=small_cifar)


@pytest.fixture
def small_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kind = import_torchvision().datasets.SVHN
    places = {}
    for index, part in enumerate(("train", "test")):
        file = tmp_path / f"{part}_32x32.mat"
        y = (np.arange(20, dtype=np.uint8) % 10 + 1)[:, None]  # SVHN writes 10 for the digit 0
        savemat(file, {"X": images(20, (32, 32, 3), seed=index).transpose(1, 2, 3, 0), "y": y})
        places[part] = ["https://nowhere.invalid/", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(kind, "split_list", places)
    return tmp_path


def test_svhn_is_read_from_its_own_format(small_svhn: Path) -> None:
    found = load_dataset("svhn", data_dir=small_svhn)
    assert (found.shape, found.threat, len(found.train)) == ((3, 32, 32), DATA_SETS["svhn"].threat, 18)
    batch = whole(found.test)
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


# Real data, where it is at hand


def test_the_real_mnist_is_read() -> None:
    found = load_dataset("mnist", data_dir=shared("data/MNIST").parent)
    assert (len(found.test), len(found.train), len(found.validation)) == (10_000, 54_000, 6_000)
    batch = found.test.batch(range(1000))
    assert batch.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert len(set(batch.samples)) == 1000


def test_real_cifar10_images_are_read_from_an_npz_file() -> None:
    found = load_dataset("cifar10", data=shared("data/cifar10-exact-subset.npz"))
    assert (found.classes, found.shape, len(found.test), len(found.train)) == (10, (3, 32, 32), 512, 4660)
    assert found.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert found.threat == ThreatModel.of("linf", "8/255")
    assert found.name == "cifar10-exact-subset", "on record as what it is"


# CIFAR-10 as JPEG

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def jpeg_zip(folder: Path, each: int = 2, size: tuple[int, int] = (32, 32), classes: tuple[str, ...] = CLASSES) -> Path:
    """A zip laid out as cifar10-jpeg.zip, with `each` images of each class to test on and five times as many to train on."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "cifar10-jpeg.zip", "w") as archive:
        for part, n in (("test", each), ("train", 5 * each)):
            for name in classes:
                for index in range(n):
                    buffer = io.BytesIO()
                    Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "JPEG")
                    archive.writestr(f"{part}/{name}/{index:04}.jpg", buffer.getvalue())
    return folder


def test_jpeg_cifar10_is_read_from_its_zip_mixed_and_with_a_tenth_held_out(tmp_path: Path) -> None:
    found = load_dataset("cifar10-jpeg", data_dir=jpeg_zip(tmp_path), download=True)  # of what is there nothing is missing
    assert (found.name, found.classes, found.shape, found.fixed_classes) == ("cifar10-jpeg", 10, (3, 32, 32), True)
    assert (len(found.test), len(found.train), len(found.validation)) == (20, 90, 10)
    assert np.bincount(found.test.labels).tolist() == [2] * 10
    assert (np.diff(found.test.labels) < 0).sum() > 2, "the classes are not mixed"
    with zipfile.ZipFile(tmp_path / "cifar10-jpeg.zip") as archive, Image.open(archive.open("test/frog/0001.jpg")) as image:
        pixels = np.asarray(image).transpose(2, 0, 1)
    (row,) = np.flatnonzero((found.test.images == pixels).all(axis=(1, 2, 3)))
    assert found.test.labels[row] == CLASSES.index("frog")
    again = load_dataset("cifar10-jpeg", data_dir=tmp_path)
    assert (again.train.images == found.train.images).all()


def test_a_zip_that_is_not_jpeg_cifar10_is_refused_in_words(tmp_path: Path) -> None:
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
