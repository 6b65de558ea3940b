"""Tiles chosen once for each model, machine and version, and kept in a file, so that repeated runs have the same bits."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from kwbench import model as passes
from kwbench.errors import CannotEvaluate
from kwbench.files import read_file, write_whole
from kwbench.model import Model, Precision
from kwbench.model.tiles import TileTrial
from kwbench.record.provenance import digest


def tiles_for(
    model: Model,
    model_sha256: str,
    precisions: Iterable[Precision],
    trial: TileTrial,
    folder: Path,
    given: Mapping[str, int] | None = None,
) -> tuple[dict[str, int], dict[str, int]]:
    """Return what `Model.choose_tiles` does, with the tiles in `folder` known, and add to them what was chosen now.

    Tiles that are `given` come before those in the folder.
    """
    file = folder / f"{_key(model, model_sha256, trial)}.json"
    known = {**_read(file), **(given or {})}
    tiles, telling = model.choose_tiles(precisions, known, trial)
    if tiles.keys() - known.keys():
        with suppress(CannotEvaluate):  # without a file that can be written, the next run chooses anew
            write_whole(file, json.dumps({**known, **tiles}, indent=2) + "\n")
    return tiles, telling


def _key(model: Model, model_sha256: str, trial: TileTrial) -> str:
    """Return a digest of all that a choice may depend on. Images count in powers of two, as tiles do."""
    on_gpu = model.device.type == "cuda"
    return digest(
        {
            "model": model_sha256,
            "shape": model.shape,
            "device": torch.cuda.get_device_name(model.device) if on_gpu else "cpu",
            "memory": trial.memory,
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "revision": passes.REVISION,
            "images": (trial.at_most - 1).bit_length(),
        }
    )


def _read(file: Path) -> Mapping[str, int]:
    """Return the tiles in a file; none if it does not exist or was damaged."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return {str(name): int(tile) for name, tile in json.loads(read_file(file)).items()}
    return {}
