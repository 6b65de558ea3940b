"""Hugging Face's hub: what is in its cache on this machine, and whether more may be fetched."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kwbench.networks.adapters.adapter import sha256_of

# Files of weights, in the order in which libraries look for them.
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")


def allow_downloads(allowed: bool) -> None:
    """Let libraries of this process fetch files of the hub, or use its cache alone."""
    os.environ["HF_HUB_OFFLINE"] = "0" if allowed else "1"
    from huggingface_hub import constants

    # The library reads the variable when it is imported.
    constants.HF_HUB_OFFLINE = not allowed


def cached(repository: str, files: Sequence[str] = WEIGHTS, revision: str | None = None) -> Path | None:
    """Return the first of some files of a repository that is in the cache, or in a folder of this name; None without any."""
    if Path(repository).is_dir():
        paths = (Path(repository) / file for file in files)
        return next((path for path in paths if path.is_file()), None)
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        path: Any = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):
            return Path(path)
    return None


def details(weights: Path | None) -> dict[str, str]:
    """Return the hash of a file of weights, and the revision whose folder it lies in."""
    if weights is None:
        return {}
    revision = {"revision": weights.parent.name} if weights.parent.parent.name == "snapshots" else {}
    return {"weights_sha256": sha256_of(weights), **revision}
