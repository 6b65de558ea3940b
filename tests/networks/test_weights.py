"""Checkpoint files: their types, and the refusal of damaged or unsuitable weights."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from kwbench.data import DataSet
from kwbench.errors import DamagedData
from kwbench.networks.entries import build_module, load_entry
from kwbench.networks.weights import load_weights
from support.pinned_entries import entry, pinned_registry, weights


@pytest.mark.parametrize(
    ("content", "described"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><p>Sign in", "an HTML page"),
        (b"<html>404", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b"PK\x03\x04 archive/data.pkl", "a zip archive"),
        (b"12345", "5 bytes"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused_with_a_description_of_it(
    tmp_path: Path, digits: DataSet, content: bytes, described: str
) -> None:
    registry, made = pinned_registry(tmp_path, content, sha256="0" * 64)
    with pytest.raises(
        DamagedData, match=rf"net\.safetensors: {described}.* with sha256 {hashlib.sha256(content).hexdigest()}, but .*0000"
    ):
        load_entry(registry, "net", made, digits)


def test_truncation_and_a_single_flipped_bit_are_detected(tmp_path: Path, network: nn.Module, digits: DataSet) -> None:
    content = safetensors.torch.save(weights(network))
    sha256 = hashlib.sha256(content).hexdigest()
    flipped = bytearray(content)
    flipped[-3] ^= 1
    for damage in (content[:-1], content[:8], bytes(flipped)):
        registry, made = pinned_registry(tmp_path, damage, sha256=sha256)
        with pytest.raises(DamagedData, match=r"but .* pins"):
            load_entry(registry, "net", made, digits)


def without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != key}


CHANGES: dict[str, Any] = {
    "missing: conv1.weight, unexpected: none": lambda own: without(own, "conv1.weight"),
    "missing: none, unexpected: more": lambda own: own | {"more": torch.zeros(1)},
    r"fc2.bias has shape \(9,\), the network needs \(10,\)": lambda own: own | {"fc2.bias": torch.zeros(9)},
    r"fc2.bias has shape \(10, 1\)": lambda own: own | {"fc2.bias": torch.zeros(10, 1)},
    "fc2.bias is torch.int64, the network needs torch.float32": lambda own: (
        own | {"fc2.bias": torch.zeros(10, dtype=torch.int64)}
    ),
    "fc2.bias holds NaN or infinity": lambda own: own | {"fc2.bias": torch.full((10,), float("nan"))},
    "conv1.bias holds NaN or infinity": lambda own: own | {"conv1.bias": torch.tensor([0.0, float("-inf")])},
    # Finite in float64 as stored, infinite in float32 as used.
    "fc1.bias holds NaN or infinity": lambda own: own | {"fc1.bias": torch.full((4,), 1e300, dtype=torch.float64)},
}


@pytest.mark.parametrize("message", CHANGES)
def test_weights_that_do_not_fit_are_refused_by_name_even_under_the_right_hash(
    tmp_path: Path, network: nn.Module, digits: DataSet, message: str
) -> None:
    registry, made = pinned_registry(tmp_path, safetensors.torch.save(CHANGES[message](weights(network))))
    with pytest.raises(DamagedData, match=message):
        load_entry(registry, "net", made, digits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_may_be_stored_in_another_precision(network: nn.Module, dtype: torch.dtype) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in weights(network).items()}
    other = build_module(entry(), (1, 8, 8), 10)
    load_weights(other, safetensors.torch.save(stored), "net")
    for key, tensor in other.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[key].float())


def test_corrupted_bytes_raise_no_other_error_than_damaged_data(network: nn.Module) -> None:
    content = safetensors.torch.save(weights(network))
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(content)
        changed[int(rng.integers(0, 400))] ^= int(rng.integers(1, 256))
        try:
            load_weights(network, bytes(changed), "net")
        except DamagedData as refusal:
            assert str(refusal).startswith("net: ")  # noqa: PT017 - either outcome is fine
