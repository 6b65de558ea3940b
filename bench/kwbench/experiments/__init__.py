"""Experiments that measure more than an accuracy, by the name that users type.

To add one, add a module to this folder and a line to the table below.
"""

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

# Experiments that build their own network.
SYNTHETIC: dict[str, type[Any]] = {"fit": Fit, "layers": Layers}


def build_experiment(name: str, parameters: Mapping[str, Any]) -> Any:
    """Build the experiment `name`, of either kind; parameters that are not given take their defaults.

    Raises UsageError for an unknown experiment or parameter, or a value out of range.
    """
    kinds = EXPERIMENTS | SYNTHETIC
    if name not in kinds:
        # The experiment `learning` only draws training curves, so it has no class here.
        raise UsageError(f"experiment {name!r} is unknown; {did_you_mean(name, [*kinds, 'learning'])}")
    known = [field.name for field in fields(kinds[name])]
    for parameter in parameters:
        if parameter not in known:
            raise UsageError(f"experiment {name!r} has no parameter {parameter!r}; {did_you_mean(parameter, known)}")
    try:
        # In JSON mode, strict validation accepts a list for a tuple but still rejects "3" for 3.
        return TypeAdapter(kinds[name]).validate_json(json.dumps(dict(parameters)))
    except ValidationError as invalid:
        first = invalid.errors()[0]
        path = ".".join([name, *(str(part) for part in first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise UsageError(f"experiment {path}: {message}{got}") from None


def configuration(experiment: Experiment | Synthetic) -> dict[str, Any]:
    """Return all parameters with their values, defaults included, as JSON values. They are part of a measurement's identity."""
    parameters = asdict(experiment)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
