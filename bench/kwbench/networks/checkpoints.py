"""Load a user's checkpoint into a user's network: safetensors, or a state dict in a file of torch.save."""

from pathlib import Path

from torch import nn

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.files import read_file
from kwbench.networks.converting import convert, without_prefix
from kwbench.networks.weights import load_weights


def load_checkpoint(module: nn.Module, path: Path, *, key: str | None = None, strip_prefix: str = "") -> None:
    """Load a file's weights into a module, strictly: same keys, shapes and kinds of types, finite values.

    A file of torch.save is read in a process of its own, and only as tensors.

    Args:
        key: the dotted key of the state dict in a file of torch.save.
        strip_prefix: what names in the file begin with, and names in the module do not, such as "module.".

    Raises CannotEvaluate if the file cannot be read, DamagedData if it holds no state dict, or one that does not fit the
    module, UsageError for a key or prefix that the file lacks.
    """
    try:
        content = read_file(path)
    except OSError as failure:
        raise CannotEvaluate(f"--checkpoint {path}: cannot be read ({failure.strerror})") from None
    pickled = content.startswith((b"PK\x03\x04", b"\x80"))
    if key is not None and not pickled:
        raise UsageError(f"--key {key}: {path} is no file of torch.save, so it holds the weights alone")
    try:
        if pickled:
            content = convert(content, str(path), key=key, strip_prefix=strip_prefix)
        elif strip_prefix:
            content = without_prefix(content, strip_prefix, str(path))
        load_weights(module, content, str(path))
    except DamagedData as failure:
        hint = "; --strip-prefix PREFIX drops what all names begin with" + (
            "; --key KEY names the state dict" if pickled else ""
        )
        raise DamagedData(f"{failure}{hint}") from None
