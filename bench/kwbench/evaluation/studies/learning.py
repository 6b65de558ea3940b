"""Learning curves of registry models, put on record (xiao2020, arXiv:1905.10510, figure 3 c)."""

import hashlib
import json

import numpy as np

from kwbench.config.registry import Registry, dataset_of
from kwbench.errors import DamagedData, UsageError
from kwbench.record.measurement import Measurement
from kwbench.record.provenance import digest
from kwbench.record.store import Store
from kwbench.training.checkpoint import recipe_hash
from kwbench.training.curve import curve_path, read_curve


def record_learning(registry: Registry, name: str, store: Store, *, command: str = "") -> Measurement:
    """Put the learning curve that `kwbench train` left beside a checkpoint on record: `epoch`, `loss` and `accuracy` (epochs,).

    Raises CannotEvaluate if there is none, DamagedData if it cannot be read, UsageError if it belongs to another recipe.
    """
    full_name, entry = registry.find(name)
    path = curve_path(registry.checkpoint_path(full_name))
    epochs = read_curve(registry.checkpoint_path(full_name))
    content = path.read_bytes()
    if json.loads(content).get("recipe") != recipe_hash(entry):
        raise UsageError(f"{path}: belongs to another recipe than the one in {registry.owner_of(full_name).path}; train anew")
    try:
        arrays = {key: np.array([epoch[key] for epoch in epochs]) for key in ("epoch", "loss", "accuracy")}
    except KeyError as missing:
        raise DamagedData(f"{path}: an epoch has no {missing}") from None
    dataset = (entry.recipe.dataset if entry.recipe else None) or dataset_of(full_name)
    spec = {
        "experiment": "learning",
        "model": full_name,
        "dataset": dataset,
        "recipe_sha256": recipe_hash(entry),
        "recipe": entry.recipe.model_dump(mode="json", exclude_defaults=True) if entry.recipe else {},
        "model_sha256": entry.checkpoint.sha256 if entry.checkpoint else None,
        "curve_sha256": hashlib.sha256(content).hexdigest(),
    }
    measurement = Measurement(digest(spec), "learning", full_name, dataset, spec, {"command": command}, arrays)
    store.record_experiment(measurement)
    return measurement
