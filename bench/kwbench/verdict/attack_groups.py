"""Attacks by the knowledge that they use: exact gradients, softened ones, function values alone, or another model."""

from collections.abc import Mapping
from typing import Any, Literal

from kwbench.record.evaluation import AttackSpec

Group = Literal["exact", "softened", "gradient-free", "transfer"]

# For rows of earlier versions, whose attacks do not declare their group: by the name of the attack and, where that is "exact",
# by the gradient estimator. Attacks that are not listed mix several groups or do nothing.
_GROUPS_OF_EARLIER_VERSIONS: Mapping[str, Group] = {
    **dict.fromkeys(("fgsm", "pgd", "apgd", "mim", "deepfool", "cw"), "exact"),
    **dict.fromkeys(("square", "rays", "gaussian-noise", "random-sign"), "gradient-free"),
    # Its climbs follow softened gradients, its flips none.
    "local-search": "softened",
    "transfer": "transfer",
}
_ESTIMATORS_OF_EARLIER_VERSIONS: Mapping[str, Group] = {
    "exact": "exact",
    "eot": "exact",
    "smooth": "softened",
    "relaxed": "softened",
    "es": "gradient-free",
}


def group_of(spec: AttackSpec, *, relaxes: bool = True) -> Group | None:
    """Return the group of an attack on record; None for a mixture, an attack that does nothing, or an unknown one.

    `relaxes` is false for a model without operations to relax, whose relaxed gradients are exact.
    """
    declared = spec.spec.get("declared")
    if isinstance(declared, Mapping):
        return "exact" if declared.get("relaxes") and not relaxes else declared.get("evidence_group")
    return _undeclared_group(spec, relaxes)


def _undeclared_group(spec: AttackSpec, relaxes: bool) -> Group | None:
    """Return the group of an attack on record that does not declare it, by its name and parameters."""
    name, parameters = _name(spec), parameters_of(spec)
    if name == "autoattack":
        # The standard version contains Square, a gradient-free attack.
        return "exact" if parameters.get("version") == "rand" else None
    group = _GROUPS_OF_EARLIER_VERSIONS.get(name)
    gradient = parameters.get("gradient")
    if group != "exact" or not isinstance(gradient, Mapping):
        return group
    estimator = str(gradient.get("kind", "exact"))
    return "exact" if estimator == "relaxed" and not relaxes else _ESTIMATORS_OF_EARLIER_VERSIONS.get(estimator)


def steps_of(spec: AttackSpec) -> int:
    """Return the number of steps of an attack; 0 if it does not say."""
    declared = spec.spec.get("declared")
    if isinstance(declared, Mapping):
        return int(declared.get("steps") or 0)
    return 1 if _name(spec) == "fgsm" else int(parameters_of(spec).get("steps") or 0)


def parameters_of(spec: AttackSpec) -> Mapping[str, Any]:
    """Return the parameters of an attack on record."""
    parameters = spec.spec.get("parameters", {})
    return parameters if isinstance(parameters, Mapping) else {}


def _name(spec: AttackSpec) -> str:
    return str(spec.spec.get("attack", spec.label))
