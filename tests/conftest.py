"""What many tests share: a small real model on the digits, made once."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)
