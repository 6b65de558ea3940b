"""A registry of small real models, trained once for all tests, and helpers to read the record."""

import sqlite3
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kwbench.config.registry import ModelEntry
from kwbench.config.strict_yaml import validate
from kwbench.config.suite import Suite, override, suite_of
from kwbench.evaluation.request import Request
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.training import save_checkpoint, train
from support.small_models import digits

RELU = {"name": "relu"}
RANDOM = {"name": "stochastic_lwta", "units": 2}

ENTRY = """\
  {name}:
    architecture: {{name: cnn3, width: 8, hidden: 64}}
    activation: {activation}
    checkpoint:
      file: {name}.safetensors
      sha256: "{sha256}"
"""


@cache
def trained(activation: str, epochs: int) -> nn.Module:
    """Train a three-layer CNN: six epochs give 95 % accuracy on the digits in a second, one epoch much less."""
    recipe = {"epochs": epochs, "learning_rate": 0.05, "seed": 0, "threads": 1, "batch_size": 64}
    network = {"name": "cnn3", "width": 8, "hidden": 64}
    kind = RANDOM if activation == "random" else RELU
    entry = validate(ModelEntry, {"architecture": network, "activation": kind, "recipe": recipe}, "registry.yaml")
    with torch.random.fork_rng():
        return train(entry, digits(), lambda _: None)


def write_registry(folder: Path, *, epochs: int = 6) -> Path:
    """A registry with the models `small` and, stochastic, `small-random`, and their checkpoints beside it."""
    text = "models:\n"
    for name, activation in (("small", "relu"), ("small-random", "random")):
        sha256 = save_checkpoint(trained(activation, epochs), folder / f"{name}.safetensors")
        chosen = "{name: stochastic_lwta, units: 2}" if activation == "random" else "{name: relu}"
        text += ENTRY.format(name=name, activation=chosen, sha256=sha256)
    path = folder / "registry.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fast_suite(*attacks: str, settings: tuple[str, ...] = ()) -> Suite:
    return override(suite_of(attacks or ("fgsm", "pgd")), settings)


def request(registry: Path, model: str = "small", **options: Any) -> Request:
    defaults: dict[str, Any] = {"suite": fast_suite(), "n": 96, "eps": "0.1", "tile": 16}
    return Request(model, registry=registry, **defaults | options)


def rows(db: Path | str, evaluation: Evaluation | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return all fields but the seconds of the outcomes of an evaluation, by default of the only one on record."""
    store = Store.open(str(db))
    try:
        if evaluation is None:
            (evaluation,) = store.evaluations()
        fields = {}
        for label, attack_run in evaluation.attack_runs.items():
            outcomes = [asdict(outcome) for outcome in store.outcomes(attack_run)]
            fields[label] = [{key: value for key, value in row.items() if key != "seconds"} for row in outcomes]
        return fields
    finally:
        store.close()


def count(db: Path | str, table: str = "outcomes") -> int:
    number = "coalesce(sum(outcomes), 0) FROM shards" if table == "outcomes" else f"count(*) FROM {table}"
    connection = sqlite3.connect(db)
    try:
        return int(connection.execute(f"SELECT {number}").fetchone()[0])
    finally:
        connection.close()


def intact(db: Path | str) -> bool:
    """Return whether SQLite's integrity check of the file passes."""
    connection = sqlite3.connect(db)
    try:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()
