"""The learning curve beside a checkpoint: loss and accuracy of every epoch."""

import json
from pathlib import Path

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.files import write_whole


def curve_path(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's learning curve."""
    return checkpoint.with_suffix(".curve.json")


def write_curve(checkpoint: Path, recipe: str, epochs: list[dict[str, float]]) -> None:
    """Write the learning curve beside the checkpoint, one epoch a line, with the hash of the recipe."""
    lines = ",\n    ".join(json.dumps(epoch, allow_nan=False) for epoch in epochs)
    write_whole(curve_path(checkpoint), f'{{\n  "recipe": "{recipe}",\n  "epochs": [\n    {lines}\n  ]\n}}\n')


def read_curve(checkpoint: Path) -> list[dict[str, float]]:
    """Read epoch, loss and accuracy of every epoch from the curve beside the checkpoint.

    Raises CannotEvaluate if there is no curve, DamagedData if it cannot be parsed.
    """
    path = curve_path(checkpoint)
    try:
        epochs = json.loads(path.read_text(encoding="utf-8"))["epochs"]
        return [{key: float(value) for key, value in epoch.items()} for epoch in epochs]
    except OSError as failure:
        raise CannotEvaluate(f"{path}: cannot be read ({failure.strerror}); `kwbench train` writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedData(f"{path}: not a learning curve") from None
