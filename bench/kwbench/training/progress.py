"""Training that was stopped goes on where it was: all that it needs, in a file beside the checkpoint."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from kwbench.data import Split
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.files import write_whole


def progress_path(checkpoint: Path) -> Path:
    """Where the training of this checkpoint keeps its progress until it is done."""
    return checkpoint.with_suffix(".progress")


def curve_path(checkpoint: Path) -> Path:
    """Where the learning curve of this checkpoint lies."""
    return checkpoint.with_suffix(".curve.json")


def write_curve(checkpoint: Path, recipe: str, epochs: list[dict[str, float]]) -> None:
    """Keep loss and accuracy of every epoch beside the checkpoint, one epoch a line."""
    lines = ",\n    ".join(json.dumps(epoch, allow_nan=False) for epoch in epochs)
    write_whole(curve_path(checkpoint), f'{{\n  "recipe": "{recipe}",\n  "epochs": [\n    {lines}\n  ]\n}}\n')


def curve_of(checkpoint: Path) -> list[dict[str, float]]:
    """Loss and accuracy of every epoch, as training left them beside the checkpoint.

    Raises CannotEvaluate if there is no curve, DamagedData if it cannot be read.
    """
    path = curve_path(checkpoint)
    try:
        epochs = json.loads(path.read_text(encoding="utf-8"))["epochs"]
        return [{key: float(value) for key, value in epoch.items()} for epoch in epochs]
    except OSError as failure:
        raise CannotEvaluate(f"{path}: cannot be read ({failure.strerror}); `kwbench train` writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedData(f"{path}: not a learning curve") from None


def images_digest(split: Split) -> str:
    """SHA-256 over the images and labels of a split."""
    sha = hashlib.sha256(str(split.images.shape).encode())
    sha.update(split.images.tobytes())
    sha.update(split.labels.tobytes())
    return sha.hexdigest()


def write_progress(path: Path, identity: dict[str, str], state: dict[str, Any]) -> None:
    """Keep a state of training, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    write_whole(path, buffer.getvalue())


def read_progress(path: Path, identity: dict[str, str]) -> dict[str, Any] | None:
    """The state that a stopped training left, None if there is none.

    Raises UsageError if it belongs to another recipe, other images or another torch, DamagedData if it cannot be read.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        known, state = dict(found["identity"]), dict(found["state"])
    except Exception as failure:  # noqa: BLE001 - damaged archives raise nearly anything
        raise DamagedData(f"{path}: the progress of a training, damaged ({failure}); remove it to begin anew") from None
    odd = [key for key in identity if known.get(key) != identity[key]]
    if odd:
        raise UsageError(f"{path}: the progress of a training with other {' and '.join(odd)}; remove it to begin anew")
    return state
