"""A k-WTA network at several gammas, trained directly and incrementally (xiao2020, arXiv:1905.10510, figures 4 and 6)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from io import StringIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from ruamel.yaml import YAML

from kwbench.config.pinning import pin_checkpoint
from kwbench.config.recipe import Incremental, Recipe
from kwbench.config.registry import Activation, ModelEntry, Paper, Registry, dataset_of, read_registry
from kwbench.data import DataSet
from kwbench.errors import UsageError
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import Progress, evaluate
from kwbench.evaluation.studies.series import record_series
from kwbench.files import write_whole
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.training import Epoch, progress_path, recipe_hash, save_checkpoint, train, write_curve

# xiao2020 D.1. It does not give the learning rate while gamma decreases; a tenth of the recipe's is our choice.
_START, _STEP, _EPOCHS, _SLOWER = Fraction("0.2"), Fraction("0.005"), 2, 0.1


@dataclass(frozen=True, slots=True)
class Variant:
    """A network of the series: its name in the series' registry, its gamma, and whether training is incremental."""

    name: str
    gamma: Fraction
    incremental: bool
    entry: ModelEntry


def variants(name: str, entry: ModelEntry, gammas: Iterable[Fraction]) -> list[Variant]:
    """Return the entry at each gamma in descending order: trained directly, and incrementally too where gamma is small enough.

    Incremental training is for gammas below its start. Direct training lasts as many epochs as the incremental training of the
    same gamma, so that the number of epochs does not explain a difference. Raises UsageError for an entry without k-WTA or
    without a recipe, and for gammas outside (0, 1].
    """
    if entry.activation.name != "kwta" or entry.recipe is None:
        raise UsageError(f"{name}: not a k-WTA network with a recipe; only such an entry can be trained at several gammas")
    recipe = entry.recipe
    lowering = recipe.incremental or Incremental(
        start=_START, step=_STEP, epochs=_EPOCHS, learning_rate=_SLOWER * recipe.learning_rate
    )
    series = []
    for gamma in sorted(set(gammas), reverse=True):
        if not 0 < gamma <= 1:
            raise UsageError(f"gamma {gamma}: must lie in (0, 1]")
        rounds = ceil((lowering.start - gamma) / lowering.step) if gamma < lowering.start else 0
        epochs = recipe.epochs + (rounds * lowering.epochs + lowering.final_epochs if rounds else 0)
        trainings: list[tuple[str, Recipe]] = [("direct", recipe.model_copy(update={"epochs": epochs, "incremental": None}))]
        if rounds:
            trainings.append(("incremental", recipe.model_copy(update={"incremental": lowering})))
        for training, training_recipe in trainings:
            update = {
                "activation": Activation(name="kwta", gamma=str(gamma)),
                "recipe": training_recipe,
                "checkpoint": None,
                "description": f"gamma {float(gamma):g}, {training}",
            }
            title = f"{name}-gamma{float(gamma):g}-{training}"
            series.append(Variant(title, gamma, training == "incremental", entry.model_copy(update=update)))
    return series


def train_series(
    series: Sequence[Variant],
    folder: Path,
    dataset: Callable[[str], DataSet],
    report: Callable[[str, Epoch], None] = lambda _, __: None,
    device: str = "cpu",
    papers: Mapping[str, Paper] | None = None,
) -> Path:
    """Train the networks that `folder` does not hold yet, and return its registry, in which every checkpoint is pinned.

    `dataset` loads a data set by name; `report` receives a network's name and each epoch; `papers` are those that the entries
    name. An interrupted call continues where it stopped. Raises UsageError if the folder's registry has other recipes under
    these names.
    """
    path = folder / "registry.yaml"
    former = read_registry(path) if path.exists() else None
    known, cited = (former.own, former.papers) if former else ({}, {})
    for variant in series:
        if variant.name in known and recipe_hash(known[variant.name]) != recipe_hash(variant.entry):
            raise UsageError(f"{path}: models.{variant.name}: another recipe than the one asked for; give another folder")
    _write(path, {variant.name: variant.entry for variant in series} | known, {**cited, **(papers or {})})
    registry = read_registry(path)
    for variant in series:
        pinned = registry.own[variant.name].checkpoint is not None
        if not (pinned and registry.checkpoint_path(variant.name).exists()):
            _train_variant(registry, variant, dataset, report, device)
    return path


def _train_variant(
    registry: Registry,
    variant: Variant,
    dataset: Callable[[str], DataSet],
    report: Callable[[str, Epoch], None],
    device: str,
) -> None:
    """Train a network, save its checkpoint and pin it in the registry."""
    recipe, file = variant.entry.recipe, registry.checkpoint_path(variant.name)
    assert recipe is not None  # `variants` requires one
    digest, progress = recipe_hash(variant.entry), progress_path(file)
    module = train(
        variant.entry,
        dataset(recipe.dataset or dataset_of(variant.name)),
        lambda epoch: report(variant.name, epoch),
        device,
        progress=progress,
        curve=lambda epochs: write_curve(file, digest, epochs),
    )
    pin_checkpoint(registry, variant.name, file, save_checkpoint(module, file, recipe.storage, {"recipe": digest}))
    progress.unlink(missing_ok=True)


def evaluate_series(
    name: str,
    series: Sequence[Variant],
    requests: Sequence[Request],
    store: Store,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    command: str = "",
) -> list[Summary]:
    """Evaluate the trained networks, one request each, and put them on record as a series of the model `name`.

    No images are stored: a series is looked at as curves.
    """
    evaluations = [evaluate(replace(request, examples=0), store, report, command=command) for request in requests]
    record_series(
        store,
        "sparsity",
        evaluations,
        {"suite": requests[0].suite.name, "values": [str(variant.gamma) for variant in series]},
        {
            "gamma": np.array([float(variant.gamma) for variant in series]),
            "incremental": np.array([float(variant.incremental) for variant in series]),
        },
        model=name,
        command=command,
    )
    return summaries(store, evaluations)


def _write(path: Path, entries: Mapping[str, ModelEntry], papers: Mapping[str, Paper]) -> None:
    yaml, text = YAML(), StringIO()
    sections = {"papers": papers, "models": entries}
    yaml.dump({section: _plain(content) for section, content in sections.items() if content}, text)
    write_whole(path, text.getvalue())


def _plain(content: Mapping[str, BaseModel]) -> dict[str, Any]:
    return {name: item.model_dump(mode="json", exclude_defaults=True, exclude_none=True) for name, item in content.items()}
