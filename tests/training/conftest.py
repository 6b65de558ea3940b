"""Fixtures of the tests of training."""

import pytest
import torch

from kwbench.data import DataSet, Split, load_dataset


@pytest.fixture(scope="module")
def few() -> DataSet:
    """Return the digits with only 200 training images."""
    digits = load_dataset("digits")
    train_split = Split(digits.train.images[:200], digits.train.labels[:200])
    return DataSet("digits", 10, digits.test, train_split, digits.validation, digits.threat)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
