"""Folders of images: classes, splits, and the refusal of damaged or unequal images."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kwbench.data import load_dataset
from kwbench.errors import CannotEvaluate, DamagedData


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
    dataset = load_dataset("digits", data=tmp_path / "own")
    assert (dataset.name, dataset.classes, dataset.shape, dataset.fixed_classes) == ("own", 3, (3, 5, 6), False)
    assert np.bincount(dataset.test.labels).tolist() == [20, 1, 20]
    assert len(dataset.train) == 0
    for name, label in (("ant", 0), ("cat", 2)):
        pixels = np.asarray(Image.open(tmp_path / "own" / name / "000.png")).transpose(2, 0, 1)
        (row,) = np.flatnonzero((dataset.test.images == pixels).all(axis=(1, 2, 3)))
        assert dataset.test.labels[row] == label


def test_the_first_images_of_a_folder_are_a_mixture_of_its_classes(tmp_path: Path) -> None:
    write_images(tmp_path, {"ant": 30, "cat": 30})
    first = load_dataset("x", data=tmp_path).test.batch(range(20))
    assert 4 <= int(first.y.sum()) <= 16
    assert load_dataset("x", data=tmp_path).test.batch(range(20)).samples == first.samples


def test_a_folder_may_contain_a_test_and_a_train_split(tmp_path: Path) -> None:
    write_images(tmp_path / "test", {"ant": 2, "cat": 2})
    write_images(tmp_path / "train", {"ant": 3, "cat": 3}, seed=1)
    dataset = load_dataset("x", data=tmp_path)
    assert (len(dataset.test), len(dataset.train), dataset.classes) == (4, 6, 2)


def test_test_and_train_must_have_the_same_classes_and_sizes(tmp_path: Path) -> None:
    write_images(tmp_path / "test", {"ant": 2, "cat": 2})
    write_images(tmp_path / "train", {"ant": 2, "bee": 2, "cat": 2})
    # Numbered separately, cat would be class 1 in one split and class 2 in the other.
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


def test_folders_of_splits_are_not_mistaken_for_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "own" / "train", {"a": 2, "b": 2})
    with pytest.raises(DamagedData, match=r"own.train: holds folders and no images, so it is no class.*test and train"):
        load_dataset("x", data=tmp_path / "own")
    write_images(tmp_path / "own" / "val", {"a": 2, "b": 2, "c": 2})
    dataset = load_dataset("x", data=tmp_path / "own")
    assert (dataset.classes, len(dataset.test), len(dataset.train)) == (3, 6, 0)


def test_a_class_may_be_called_val(tmp_path: Path) -> None:
    write_images(tmp_path / "own", {"val": 2, "mont": 2})
    assert load_dataset("x", data=tmp_path / "own").class_names == ("mont", "val")


def test_a_link_that_leads_to_a_folder_again_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "own", {"a": 1, "b": 1})
    (tmp_path / "own" / "a" / "up").symlink_to("..")
    with pytest.raises(DamagedData, match=r"leads to the folder .* again; remove the link"):
        load_dataset("x", data=tmp_path / "own")


def test_only_formats_that_pillow_reads_itself_are_opened(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b" / "000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n")
    with pytest.raises(DamagedData, match=r"000\.png: not a readable image of the formats PNG, JPEG"):
        load_dataset("x", data=tmp_path)


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 1, "b": 1})
    os.mkfifo(tmp_path / "b" / "pipe.png")
    with pytest.raises(DamagedData, match=r"pipe\.png: not a readable image \(.*a pipe or a device, not a file"):
        load_dataset("x", data=tmp_path)
