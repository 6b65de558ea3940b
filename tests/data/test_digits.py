"""The digits: splits that never change, and pixels equal to those of scikit-learn."""

import pytest
import torch

from kwbench.data import load_dataset, sample_hash, slice_hash
from support.data_sets import full_batch

# A change here would make all digits results on record incomparable with new ones.
DIGITS = {
    "test": (360, "60c4a45f3bef6dfe04a3d5690297cba6d53c4155cc779239eb7992e5dd34f9a8"),
    "train": (1257, "bf75d433c5831f71e94e849f0544a9a1b6fb424ffd7c77591d1cc912949c3790"),
    "validation": (180, "b9ba404a10a3aa93932ee67a7d656c5c72165bb844ecb8c566528a2c157195db"),
}


@pytest.mark.parametrize("part", DIGITS)
def test_the_splits_of_the_digits_never_change(part: str) -> None:
    split = getattr(load_dataset("digits"), part)
    assert (len(split), slice_hash(full_batch(split).samples)) == DIGITS[part]


def test_the_splits_of_the_digits_are_disjoint_stratified_and_complete() -> None:
    dataset = load_dataset("digits")
    batches = {part: full_batch(getattr(dataset, part)) for part in DIGITS}
    samples = [sample for batch in batches.values() for sample in batch.samples]
    assert len(samples) == len(set(samples)) == 1797
    assert torch.bincount(batches["test"].y).tolist() == [36] * 10
    assert torch.bincount(batches["validation"].y).tolist() == [18] * 10
    pixels = [batch.x.flatten(1) for batch in batches.values()]
    assert len(torch.cat(pixels).unique(dim=0)) == 1797, "the same image in two splits"  # type: ignore[no-untyped-call]


def test_the_digits_are_the_images_of_scikit_learn_scaled_to_0_to_1() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    known = {
        sample_hash((image.reshape(1, 8, 8) / 16).astype("f4"), int(label)) for image, label in zip(pixels, labels, strict=True)
    }
    dataset = load_dataset("digits")
    assert (dataset.name, dataset.classes, dataset.shape, dataset.fixed_classes) == ("digits", 10, (1, 8, 8), True)
    batch = full_batch(dataset.test)
    assert set(batch.samples) <= known
    assert batch.x.dtype == torch.float32
    assert (batch.x.min().item(), batch.x.max().item()) == (0, 1)
    assert batch.y.dtype == torch.int64


def test_the_first_digits_contain_all_classes_and_are_the_same_on_each_load() -> None:
    first, second = (load_dataset("digits").test.batch(range(50)) for _ in range(2))
    assert first.samples == second.samples
    assert torch.equal(first.x, second.x)
    assert len(first.y.unique()) == 10  # type: ignore[no-untyped-call]


def test_the_digits_are_the_same_when_loaded_through_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kwbench.data.digits.find_spec", lambda _: None)
    test = load_dataset("digits").test
    assert (len(test), slice_hash(full_batch(test).samples)) == DIGITS["test"]
