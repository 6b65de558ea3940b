"""Checkpoints of trained networks: writing them, starting from one, and the accuracy of the network."""

import hashlib
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from kwbench.config.registry import ModelEntry
from kwbench.data import Split
from kwbench.errors import DamagedData
from kwbench.files import write_whole
from kwbench.record.provenance import digest

Storage = Literal["float32", "float16"]

# The sections of an entry that determine the weights.
_DETERMINES_WEIGHTS = {"architecture", "activation", "normalise", "smoothing", "recipe"}


def recipe_hash(entry: ModelEntry) -> str:
    """Return SHA-256 over everything in an entry that determines the weights; values equal to their defaults do not count."""
    return digest(entry.model_dump(mode="json", include=_DETERMINES_WEIGHTS, exclude_defaults=True))


def accuracy(module: nn.Module, split: Split) -> float:
    """Return the share of a split that the network predicts correctly, in [0, 1], from one forward pass a sample."""
    batch = split.batch(range(len(split)))
    with torch.no_grad():
        correct = sum(
            int((module(x).argmax(dim=1) == y).sum())
            for x, y in zip(torch.split(batch.x, 256), torch.split(batch.y, 256), strict=True)
        )
    return correct / len(split)


def save_checkpoint(module: nn.Module, path: Path, storage: Storage = "float32", metadata: dict[str, str] | None = None) -> str:
    """Write a module's weights as safetensors, atomically, and return the SHA-256 of the file.

    Floating-point weights are stored as `storage`. Raises CannotEvaluate if the file cannot be written.
    """
    tensors = {key: _stored(tensor, storage).contiguous() for key, tensor in module.state_dict().items()}
    content = safetensors.torch.save(tensors, metadata)
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def round_weights(module: nn.Module, storage: Storage) -> None:
    """Round the weights to the values that a checkpoint stored as `storage` restores."""
    module.load_state_dict({key: _stored(tensor, storage) for key, tensor in module.state_dict().items()})


def _stored(tensor: Tensor, storage: Storage) -> Tensor:
    return tensor.to(getattr(torch, storage)) if tensor.is_floating_point() else tensor


def load_pretrained(module: nn.Module, content: bytes, name: str) -> None:
    """Load the weights of a network of the same architecture, the content of a safetensors file, into a module.

    The last layer keeps its own weights if the number of classes differs. Raises DamagedData, which calls the weights `name`,
    if they do not fit.
    """
    try:
        tensors = safetensors.torch.load(content)
    except Exception as failure:  # noqa: BLE001 - the parser raises nearly anything on damaged bytes
        raise DamagedData(f"{name}: not a safetensors file ({failure})") from None
    own = module.state_dict()
    last_layer = list(own)[-1].rpartition(".")[0]
    last = {key: tensor for key, tensor in own.items() if key.rpartition(".")[0] == last_layer}
    same_classes = all(last[key].shape == tensors[key].shape for key in last if key in tensors)
    tensors = {key: tensor for key, tensor in tensors.items() if key not in last or same_classes}
    # Old files lack the counters of batch norms.
    missing = [key for key in own if key not in tensors and key not in last and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in tensors if key not in own]
    if missing or unexpected:
        raise DamagedData(
            f"{name}: weights do not fit the network; missing: {', '.join(missing[:5]) or 'none'}, "
            f"unexpected: {', '.join(unexpected[:5]) or 'none'}"
        )
    for key, tensor in tensors.items():
        if tensor.shape != own[key].shape:
            raise DamagedData(f"{name}: {key} has shape {tuple(tensor.shape)}, the network needs {tuple(own[key].shape)}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DamagedData(f"{name}: {key} holds NaN or infinity")
    module.load_state_dict(tensors, strict=False)
