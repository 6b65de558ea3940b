"""Shell completion of names, without importing torch: attacks, data sets and experiments are read from source text."""

import ast
from collections.abc import Iterable
from pathlib import Path

import typer

from kwbench.errors import KwbenchError

_PACKAGE = Path(__file__).parents[1]


def complete_models(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the models of the registry, --registry included, that begin with what was typed."""
    from kwbench.config.registry import read_registry

    try:
        names = list(read_registry(ctx.params.get("registry")).entries)
    except KwbenchError:
        return []
    return _beginning(incomplete, [*names, *(f"digits/{name}" for name in names if "/" not in name)])


def complete_attacks(incomplete: str) -> list[str]:
    """Return lists of attacks that begin with what was typed, where the last name is completed."""
    before, comma, last = incomplete.rpartition(",")
    names = attack_names() if comma else ["all", *attack_names()]
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


def complete_suites(incomplete: str) -> list[str]:
    """Return the suites that come with kwbench."""
    from kwbench.config.suite import suite_names

    return _beginning(incomplete, suite_names())


def complete_datasets(incomplete: str) -> list[str]:
    """Return the data sets that have a name."""
    return _beginning(incomplete, dataset_names())


def complete_experiments(incomplete: str) -> list[str]:
    """Return the experiments."""
    return _beginning(incomplete, experiment_names())


def attack_names() -> list[str]:
    """Return the keys of kwbench.attacks.ATTACKS."""
    return _keys("attacks/__init__.py", "ATTACKS")


def dataset_names() -> list[str]:
    """Return the keys of kwbench.data.DATA_SETS."""
    return _keys("data/__init__.py", "DATA_SETS")


def experiment_names() -> list[str]:
    """Return the keys of kwbench.experiments.EXPERIMENTS and SYNTHETIC, and `learning`."""
    return [*_keys("experiments/__init__.py", "EXPERIMENTS"), "learning", *_keys("experiments/__init__.py", "SYNTHETIC")]


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _keys(file: str, variable: str) -> list[str]:
    """Return the keys of a dictionary that a module assigns to a variable; importing the module would import torch.

    The dictionary is written with its keys, or as a comprehension over a tuple of records whose first argument is the key.
    """
    for statement in ast.parse((_PACKAGE / file).read_text(encoding="utf-8")).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            return _keys_of(getattr(statement, "value", None))
    return []


def _keys_of(value: ast.AST | None) -> list[str]:
    keys: list[ast.expr | None] = []
    if isinstance(value, ast.Dict):
        keys = value.keys
    elif isinstance(value, ast.DictComp) and isinstance(value.generators[0].iter, ast.Tuple):
        keys = [record.args[0] for record in value.generators[0].iter.elts if isinstance(record, ast.Call)]
    return [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
