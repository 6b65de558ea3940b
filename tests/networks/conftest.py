"""Fixtures of the tests of networks."""

import pytest
import torch
from torch import nn

from kwbench.data import DataSet, load_dataset
from kwbench.networks.entries import build_module
from support.pinned_entries import entry


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_dataset("digits")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_module(entry(), (1, 8, 8), 10).eval()
