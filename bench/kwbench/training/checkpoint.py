"""What training leaves behind: the weights, and how many images they get right."""

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

# The parts of an entry that make the weights what they are.
_MAKES = {"architecture", "activation", "normalise", "smoothing", "recipe"}


def recipe_hash(entry: ModelEntry) -> str:
    """SHA-256 over all that the entry says of the training; what it leaves at its default does not count."""
    return digest(entry.model_dump(mode="json", include=_MAKES, exclude_defaults=True))


def accuracy(module: nn.Module, split: Split) -> float:
    """Share of a split that the network gets right, by one pass each."""
    batch = split.batch(range(len(split)))
    with torch.no_grad():
        right = sum(
            int((module(x).argmax(dim=1) == y).sum())
            for x, y in zip(torch.split(batch.x, 256), torch.split(batch.y, 256), strict=True)
        )
    return right / len(split)


def save_checkpoint(module: nn.Module, path: Path, storage: Storage = "float32", metadata: dict[str, str] | None = None) -> str:
    """Write a module's weights as safetensors, whole or not at all. Returns the SHA-256 of the file.

    Float weights are kept as `storage`. Raises CannotEvaluate if the file cannot be written.
    """
    tensors = {key: _stored(tensor, storage).contiguous() for key, tensor in module.state_dict().items()}
    content = safetensors.torch.save(tensors, metadata)
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def round_weights(module: nn.Module, storage: Storage) -> None:
    """Give the weights the values that a checkpoint kept as `storage` gives back."""
    module.load_state_dict({key: _stored(tensor, storage) for key, tensor in module.state_dict().items()})


def _stored(tensor: Tensor, storage: Storage) -> Tensor:
    return tensor.to(getattr(torch, storage)) if tensor.is_floating_point() else tensor


def start_from(module: nn.Module, content: bytes, name: str) -> None:
    """Give a module the weights of another of its kind, a safetensors file, but for the last layer if its classes differ.

    Raises DamagedData where they do not fit.
    """
    try:
        tensors = safetensors.torch.load(content)
    except Exception as failure:  # noqa: BLE001 - the parser raises nearly anything on damaged bytes
        raise DamagedData(f"{name}: not a safetensors file ({failure})") from None
    own = module.state_dict()
    bias = list(own)[-1]
    last = {key: tensor for key, tensor in own.items() if key.rpartition(".")[0] == bias.rpartition(".")[0]}
    fitting = {
        key: tensor
        for key, tensor in tensors.items()
        if key not in last or all(last[each].shape == tensors[each].shape for each in last if each in tensors)
    }
    # Batch norms of old files do not count their batches.
    missing = [key for key in own if key not in fitting and key not in last and not key.endswith("num_batches_tracked")]
    extra = [key for key in fitting if key not in own]
    if missing or extra:
        raise DamagedData(
            f"{name}: weights do not fit the network; missing: {', '.join(missing[:5]) or 'none'}, "
            f"unexpected: {', '.join(extra[:5]) or 'none'}"
        )
    for key, tensor in fitting.items():
        if tensor.shape != own[key].shape:
            raise DamagedData(f"{name}: {key} has shape {tuple(tensor.shape)}, the network needs {tuple(own[key].shape)}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DamagedData(f"{name}: {key} holds NaN or infinity")
    module.load_state_dict(fitting, strict=False)
