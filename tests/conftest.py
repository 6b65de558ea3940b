"""What all tests share."""

import os
from pathlib import Path

# Tests, and the processes that they start, take one core each unless they say otherwise. It holds from torch's import on.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
