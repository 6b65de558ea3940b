"""Batches, hashes of samples and slices, and names of data sets."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from kwbench.data import dataset_names, load_dataset, sample_hash, slice_hash
from kwbench.errors import UsageError
from support.data_sets import full_batch, images, load_npz


def test_splitting_and_reordering_a_batch_keeps_images_labels_and_hashes_aligned() -> None:
    batch = load_dataset("digits").test.batch(range(7))
    assert [len(tile) for tile in batch.tiles(3)] == [3, 3, 1]
    assert sum((tile.samples for tile in batch.tiles(3)), ()) == batch.samples
    chosen = batch.take([5, 0])
    assert chosen.samples == (batch.samples[5], batch.samples[0])
    assert chosen.indices == (5, 0)
    assert torch.equal(chosen.x, batch.x[[5, 0]])
    assert chosen.y.tolist() == [batch.y[5], batch.y[0]]
    assert chosen.to("cpu").samples == chosen.samples


def test_the_hash_of_a_sample_depends_on_pixels_and_label_but_not_on_memory_layout() -> None:
    image = np.random.default_rng(0).random((3, 4, 5)).astype("f4")
    assert sample_hash(image, 3) == sample_hash(np.asfortranarray(image), 3) == sample_hash(image.astype(">f4"), 3)
    other = image.copy()
    other[2, 3, 4] = np.nextafter(other[2, 3, 4], np.float32(1))
    assert len({sample_hash(image, 3), sample_hash(image, 4), sample_hash(other, 3)}) == 3
    expected = hashlib.sha256(image.astype("<f4").tobytes() + (3).to_bytes(8, "little")).hexdigest()[:32]
    assert sample_hash(image, 3) == expected


def test_equal_samples_of_a_data_set_get_different_hashes(tmp_path: Path) -> None:
    x = np.repeat(images(1), 4, axis=0)
    batch = full_batch(load_npz(tmp_path, x_test=x, y_test=[0, 0, 1, 0]).test)
    assert len(set(batch.samples)) == 4
    assert batch.samples[0] == sample_hash(batch.x[0].numpy(), 0)
    assert batch.samples[2] == sample_hash(batch.x[0].numpy(), 1)
    assert full_batch(load_npz(tmp_path, x_test=x, y_test=[0, 0, 1, 0]).test).samples == batch.samples


def test_the_hash_of_a_slice_depends_on_samples_and_their_order() -> None:
    assert slice_hash(["a", "b"]) != slice_hash(["b", "a"])


def test_unknown_data_sets_come_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="'cifar' is unknown; did you mean 'cifar10'"):
        load_dataset("cifar")
    assert set(dataset_names()) == {"digits", "mnist", "cifar10", "cifar100", "cifar10-jpeg", "svhn"}
