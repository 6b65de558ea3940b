"""Load a user's checkpoint into a user's network: safetensors, or a state dict in a file of torch.save."""

from pathlib import Path

from torch import nn

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.networks.converting import convert
from kwbench.networks.weights import load_weights


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Load a file's weights into a module, strictly: same keys, shapes and kinds of types, finite values.

    A file of torch.save is read in a process of its own, and only as tensors. Raises CannotEvaluate if the file cannot be
    read, DamagedData if it holds no state dict, or one that does not fit the module.
    """
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise CannotEvaluate(f"--checkpoint {path}: cannot be read ({failure.strerror})") from None
    pickled = content.startswith((b"PK\x03\x04", b"\x80"))
    try:
        load_weights(module, convert(content, str(path)) if pickled else content, str(path))
    except DamagedData as failure:
        hint = f"; `kwbench convert {path} OUT.safetensors --key KEY --strip-prefix PREFIX` may mend it" if pickled else ""
        raise DamagedData(f"{failure}{hint}") from None
