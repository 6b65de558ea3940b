"""The experiments beyond tables, by the name that users type. A new one is a file in this folder and a line here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kwbench.errors import UsageError, did_you_mean
from kwbench.experiments.answers import Answers
from kwbench.experiments.experiment import Experiment, Subject, Synthetic
from kwbench.experiments.fit import Fit
from kwbench.experiments.landscape import Landscape
from kwbench.experiments.layers import Layers
from kwbench.experiments.logits import Logits
from kwbench.experiments.patterns import Patterns
from kwbench.experiments.weights import Weights

__all__ = ["EXPERIMENTS", "SYNTHETIC", "Experiment", "Subject", "Synthetic", "build_experiment", "configuration"]

EXPERIMENTS: dict[str, type[Any]] = {
    "landscape": Landscape,
    "logits": Logits,
    "patterns": Patterns,
    "answers": Answers,
    "weights": Weights,
}

# Those that make their own network.
SYNTHETIC: dict[str, type[Any]] = {"fit": Fit, "layers": Layers}


def build_experiment(name: str, parameters: Mapping[str, Any]) -> Any:
    """The experiment `name`, one of either kind, with these parameters; what is not given takes its default.

    Raises UsageError for an unknown experiment or parameter, or a value out of range.
    """
    kinds = EXPERIMENTS | SYNTHETIC
    if name not in kinds:
        # That of training's curves measures nothing.
        raise UsageError(f"experiment {name!r} is unknown; {did_you_mean(name, [*kinds, 'learning'])}")
    known = [field.name for field in fields(kinds[name])]
    for parameter in parameters:
        if parameter not in known:
            raise UsageError(f"experiment {name!r} has no parameter {parameter!r}; {did_you_mean(parameter, known)}")
    try:
        # As JSON: strict validation takes a list for a tuple, and still refuses "3" for 3.
        return TypeAdapter(kinds[name]).validate_json(json.dumps(dict(parameters)))
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        said = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise UsageError(f"experiment {where}: {said}{got}") from None


def configuration(experiment: Experiment | Synthetic) -> dict[str, Any]:
    """Every parameter with its value, defaults included, as plain data; part of what identifies a measurement."""
    plain = asdict(experiment)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
