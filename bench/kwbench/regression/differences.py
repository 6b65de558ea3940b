"""Why two evaluations are not comparable, in words."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kwbench.record.comparability import ComparisonKey

# Number of parameters that a message names.
_NAMED = 3


def agreement(one: ComparisonKey, other: ComparisonKey) -> int:
    """Return the number of fields in which two keys agree."""
    return sum(first == second for first, second in zip(one, other, strict=True))


def describe_differences(now: ComparisonKey, baseline: ComparisonKey) -> str:
    """Return the fields in which an evaluation differs from the baseline, otherwise the attacks and parameters."""
    differences = [
        f"{name} is {getattr(now, name)}, the baseline's {getattr(baseline, name)}"
        for name in ("dataset", "n", "norm", "eps", "suite", "prediction", "cascade")
        if getattr(now, name) != getattr(baseline, name)
    ]
    if not differences and now.data != baseline.data:
        differences.append("other data")
    if not differences:
        differences = _parameter_differences(_parameters(now), _parameters(baseline))
    return "; ".join(differences) or "other attacks or parameters"


def _parameters(key: ComparisonKey) -> dict[str, dict[str, Any]]:
    """Return the suite's definition and the parameters of each attack, by label; nested ones as gradient.kind."""
    definition, attacks = json.loads(key.protocol)
    by_label = {
        attack["label"]: {name: value for name, value in attack.items() if name not in ("label", "parameters")}
        | attack.get("parameters", {})
        for attack in definition or ()
    }
    for label, parameters in attacks:
        by_label[label] = by_label.get(label, {}) | parameters
    return {label: dict(_flatten(parameters)) for label, parameters in by_label.items()}


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parameter_differences(now: Mapping[str, Mapping[str, Any]], baseline: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the attacks and parameters that differ; the first few, and the number of the others."""
    differences = [f"{label} is not among the attacks" for label in baseline if label not in now]
    differences += [f"{label} is not among the baseline's attacks" for label in now if label not in baseline]
    for label, before in baseline.items():
        after = now.get(label, before)
        differences += [
            f"{label}.{name} is {after.get(name)}, the baseline's {before.get(name)}"
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        ]
    more = len(differences) - _NAMED
    return differences[:_NAMED] + ([f"and {more} more"] if more > 0 else [])
