"""Weights of networks in safetensors files."""

import safetensors.torch
from torch import Tensor, nn

from kwbench.errors import DamagedData


def load_weights(module: nn.Module, content: bytes, name: str) -> None:
    """Load the bytes of a safetensors file into a module, strictly: same keys, shapes and kinds of types, finite values.

    Floating point weights may be stored in half precision. Raises DamagedData that names the keys at fault.
    """
    tensors = _parse_tensors(content, name)
    expected = module.state_dict()
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise DamagedData(
            f"{name}: keys do not fit the network; missing: {', '.join(missing[:5]) or 'none'}, "
            f"unexpected: {', '.join(extra[:5]) or 'none'}"
        )
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise DamagedData(f"{name}: {key} has shape {tuple(tensor.shape)}, the network needs {tuple(expected[key].shape)}")
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise DamagedData(f"{name}: {key} is {tensor.dtype}, the network needs {expected[key].dtype}")
        # Checked in the network's type: a finite double may be infinite as a float.
        if tensor.is_floating_point() and not bool(tensor.to(expected[key].dtype).isfinite().all()):
            raise DamagedData(f"{name}: {key} holds NaN or infinity")
    module.load_state_dict(tensors, strict=True)


def _parse_tensors(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except Exception as failure:  # noqa: BLE001 - the parser raises nearly anything on damaged bytes
        raise DamagedData(f"{name}: not a safetensors file ({failure})") from None


def count_classes(content: bytes, module: nn.Module) -> int:
    """Return the number of logits of a checkpoint, the length of its last weights: the logits' biases. 0 if unknown."""
    last = list(module.state_dict())[-1]
    bias = _parse_tensors(content, "checkpoint").get(last)
    return len(bias) if bias is not None and bias.dim() == 1 else 0


def describe_content(content: bytes) -> str:
    """Describe what a file seems to be, for error messages."""
    if not content:
        return "an empty file"
    if content[:100].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page"
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if content.startswith(b"PK\x03\x04"):
        return "a zip archive (perhaps a torch.save file)"
    return f"{len(content)} bytes"
