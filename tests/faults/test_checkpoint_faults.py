"""A checkpoint that is replaced while it is loaded."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from kwbench.data import load_dataset
from kwbench.networks.entries import build_module, load_entry
from support.pinned_entries import entry, pinned_registry, weights


def test_the_bytes_that_are_loaded_are_those_that_were_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network: nn.Module = build_module(entry(), (1, 8, 8), 10).eval()
    content = safetensors.torch.save(weights(network))
    others = safetensors.torch.save({name: tensor * 0 for name, tensor in weights(network).items()})
    registry, made = pinned_registry(tmp_path, content)

    digits = load_dataset("digits")

    def swap(*arguments: Any) -> Any:
        (tmp_path / "net.safetensors").write_bytes(others)
        return hashlib.new("sha256", *arguments)

    monkeypatch.setattr(hashlib, "sha256", swap)
    loaded = load_entry(registry, "net", made, digits)
    assert (tmp_path / "net.safetensors").read_bytes() == others
    assert loaded.sha256 == hashlib.new("sha256", content).hexdigest()
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
