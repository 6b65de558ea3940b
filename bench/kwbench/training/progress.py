"""The state of an unfinished training, in a file beside the checkpoint from which the training is resumed."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from kwbench.data import Split
from kwbench.errors import DamagedData, UsageError
from kwbench.files import write_whole


def progress_path(checkpoint: Path) -> Path:
    """Return the path of the progress file of a checkpoint's training."""
    return checkpoint.with_suffix(".progress")


def split_digest(split: Split) -> str:
    """Return SHA-256 over the images and labels of a split."""
    sha = hashlib.sha256(str(split.images.shape).encode())
    sha.update(split.images.tobytes())
    sha.update(split.labels.tobytes())
    return sha.hexdigest()


def write_progress(path: Path, identity: dict[str, str], state: dict[str, Any]) -> None:
    """Write a state of training atomically. `identity` is what must be equal to resume from it."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    write_whole(path, buffer.getvalue())


def read_progress(path: Path, identity: dict[str, str]) -> dict[str, Any] | None:
    """Read the state of an interrupted training; None if there is no file.

    Raises UsageError if the recipe, the images, torch or the device differ, DamagedData if the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        known, state = dict(content["identity"]), dict(content["state"])
    except Exception as failure:  # noqa: BLE001 - damaged archives raise nearly anything
        raise DamagedData(f"{path}: the progress of a training, damaged ({failure}); remove it to begin anew") from None
    different = [key for key in identity if known.get(key) != identity[key]]
    if different:
        raise UsageError(f"{path}: the progress of a training with other {' and '.join(different)}; remove it to begin anew")
    return state
