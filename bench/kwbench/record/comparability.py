"""Which evaluations may stand in one table: those of equal data, samples, threat model, suite and rule of prediction."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from kwbench.outcome import escalated
from kwbench.record.evaluation import Evaluation

# What suites write for a parameter that depends on the model and the machine.
_AUTO = "auto"


class ComparisonKey(NamedTuple):
    """Equal for evaluations whose numbers may stand in one table, and for no others."""

    dataset: str
    data: str
    n: int
    norm: str
    eps: str
    suite: str
    protocol: str
    prediction: str
    # Whether all attacks form one cascade. An attack that follows plain attacks in a cascade has no column of its own.
    cascade: bool


def comparison_key(evaluation: Evaluation, *, resolved: bool = False) -> ComparisonKey:
    """Return data set and slice, number of samples, threat model, suite with every parameter, and the rule of prediction.

    A suite may have attacks for stochastic models only. If its definition is on record, it is one protocol for all models.

    Args:
        evaluation: the evaluation.
        resolved: use the values that `auto` parameters took for this model on this machine. By default, `auto` counts as such.
    """
    spec = evaluation.spec
    conditional = {label for label, when in suite_labels(evaluation).items() if when != "always"}
    attacks = [
        (label, parameters) for label, parameters in _parameters(evaluation, resolved=resolved) if label not in conditional
    ]
    # A deterministic model predicts the same under every rule; its record names a single draw.
    prediction = evaluation.origin.get("prediction", {"kind": "draw", "draws": 1})
    return ComparisonKey(
        spec.dataset,
        str(evaluation.origin.get("data_sha256")),
        spec.n,
        spec.threat.norm,
        str(spec.threat.eps),
        spec.suite,
        _to_text([spec.spec.get("protocol"), attacks]),
        _to_text(prediction),
        spec.spec.get("cascade", False) is True,
    )


def attacks_key(evaluation: Evaluation, *, resolved: bool = False) -> str:
    """Return a text that is equal for evaluations with the same attacks and parameters; `resolved` as in `comparison_key`."""
    return _to_text(_parameters(evaluation, resolved=resolved))


def suite_labels(evaluation: Evaluation) -> dict[str, str]:
    """Return the labels of the suite's definition in order, each with the kind of model that it is for (`when`).

    Empty where the record has no definition.
    """
    return {label: str(attack.get("when", "always")) for label, attack in _definition(evaluation).items()}


def _parameters(evaluation: Evaluation, *, resolved: bool) -> list[tuple[str, dict[str, Any]]]:
    """Return the label and parameters of each attack; `auto` where the suite says so, unless `resolved`."""
    definition = {} if resolved else _definition(evaluation)
    attacks = []
    for attack in evaluation.spec.attacks:
        defined = definition.get(attack.label, {}).get("parameters", {})
        recorded = attack.spec.get("parameters", {})
        parameters = {name: _AUTO if defined.get(name) == _AUTO else value for name, value in recorded.items()}
        attacks.append((attack.label, parameters))
    return attacks


def _definition(evaluation: Evaluation) -> dict[str, Mapping[str, Any]]:
    """Return the suite's definition of each attack in order, escalations included."""
    protocol = evaluation.spec.spec.get("protocol")
    return {
        escalated(str(attack.get("label")), doubled): attack
        for attack in (protocol if isinstance(protocol, list) else ())
        if isinstance(attack, Mapping)
        for doubled in range(attack.get("escalate", 0) + 1)
    }


def _to_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
