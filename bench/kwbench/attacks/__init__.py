"""The attacks, by the name that users type. A new one is a file in this folder and a line in ATTACKS."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kwbench.attacks.attack import Attack
from kwbench.attacks.pgd import Pgd
from kwbench.errors import UsageError, did_you_mean
from kwbench.model import Model

ATTACKS: dict[str, type[Any]] = {
    "pgd": Pgd,
}


def build_attack(name: str, parameters: Mapping[str, Any], surrogate: Callable[[str], Model] | None = None) -> Attack:
    """The attack `name` with these parameters; what is not given takes its default.

    `surrogate` loads the model that a transfer attack names. Raises UsageError for an unknown attack or parameter, or a
    value out of range.
    """
    if name not in ATTACKS:
        raise UsageError(f"attack {name!r} is unknown; {did_you_mean(name, ATTACKS)}")
    kind = ATTACKS[name]
    known = [field.name for field in fields(kind) if field.metadata.get("parameter", True)]
    for parameter in parameters:
        if parameter not in known:
            raise UsageError(f"attack {name!r} has no parameter {parameter!r}; {did_you_mean(parameter, known)}")
    try:
        # As JSON: strict validation then builds the nested estimator from a mapping, and still refuses "3" for 3.
        attack: Any = TypeAdapter(kind).validate_json(json.dumps(dict(parameters)))
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join([name, *(str(part) for part in first["loc"])])
        raise UsageError(f"attack parameter {where}: {first['msg']}, got {first['input']!r}") from None
    if "source" in {field.name for field in fields(kind)}:
        if surrogate is None:
            raise UsageError(f"attack {name!r} needs a surrogate model, and none can be loaded here")
        attack = replace(attack, source=surrogate(attack.surrogate))
    return attack  # type: ignore[no-any-return]


def parameters_of(attack: Attack) -> dict[str, Any]:
    """Every parameter of an attack with its value, defaults included, as plain data; part of a run's identity."""
    hidden = {field.name for field in fields(attack) if not field.metadata.get("parameter", True)}
    shallow = {field.name: getattr(attack, field.name) for field in fields(attack) if field.name not in hidden}
    return {name: asdict(value) if hasattr(value, "__dataclass_fields__") else value for name, value in shallow.items()}
