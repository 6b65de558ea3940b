"""How the loss ran while a model of the registry was trained (xiao2020, arXiv:1905.10510, figure 3 c)."""

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
    found, entry = registry.find(name)
    path = curve_path(registry.checkpoint_path(found))
    epochs = read_curve(registry.checkpoint_path(found))
    content = path.read_bytes()
    if json.loads(content).get("recipe") != recipe_hash(entry):
        raise UsageError(f"{path}: the curve of another recipe than the one in {registry.owner_of(found).path}; train anew")
    try:
        arrays = {key: np.array([epoch[key] for epoch in epochs]) for key in ("epoch", "loss", "accuracy")}
    except KeyError as missing:
        raise DamagedData(f"{path}: an epoch has no {missing}") from None
    dataset = (entry.recipe.dataset if entry.recipe else None) or dataset_of(found)
    spec = {
        "experiment": "learning",
        "model": found,
        "dataset": dataset,
        "recipe_sha256": recipe_hash(entry),
        "recipe": entry.recipe.model_dump(mode="json", exclude_defaults=True) if entry.recipe else {},
        "model_sha256": entry.checkpoint.sha256 if entry.checkpoint else None,
        "curve_sha256": hashlib.sha256(content).hexdigest(),
    }
    measured = Measurement(digest(spec), "learning", found, dataset, spec, {"command": command}, arrays)
    store.record_experiment(measured)
    return measured
