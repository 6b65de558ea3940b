"""Registry entries of a small network, and registries that pin a checkpoint."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kwbench.config.registry import ModelEntry, Registry
from kwbench.config.strict_yaml import validate

ENTRY: dict[str, Any] = {"architecture": {"name": "cnn3", "width": 2, "hidden": 4}, "activation": {"name": "relu"}}


def entry(**sections: Any) -> ModelEntry:
    """Return an entry of a small CNN with these sections added or replaced."""
    return validate(ModelEntry, ENTRY | sections, "registry.yaml")


def pinned_registry(folder: Path, content: bytes, sha256: str | None = None, **sections: Any) -> tuple[Registry, ModelEntry]:
    """Return a registry whose entry `net` pins these bytes, and the entry."""
    (folder / "net.safetensors").write_bytes(content)
    checkpoint = {"file": "net.safetensors", "sha256": sha256 or hashlib.sha256(content).hexdigest()}
    made = entry(checkpoint=checkpoint, **sections)
    return Registry(folder / "registry.yaml", {"net": made}), made


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the tensors of a state dict."""
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}
