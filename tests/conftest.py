"""Settings and helpers of all tests."""

import os
from pathlib import Path

# Tests, and the processes that they start, take one core each unless they ask for more. torch reads it when imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

# Data sets and checkpoints that are too large for the repository, in a folder beside it.
SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(path: str) -> Path:
    """Return a file or folder in `SHARED`; skip the test if it is missing."""
    wanted = SHARED / path
    if not wanted.exists():
        pytest.skip(f"{wanted} is missing")
    return wanted


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
