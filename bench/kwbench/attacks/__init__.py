"""Attacks by the name that users write. A new one is a file in this folder and a line in ATTACKS."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kwbench.attacks.apgd import Apgd
from kwbench.attacks.attack import Attack
from kwbench.attacks.autoattack import AutoAttack
from kwbench.attacks.autoattack_part import AutoAttackPart
from kwbench.attacks.carlini_wagner import CarliniWagner
from kwbench.attacks.complete_search import CompleteSearch
from kwbench.attacks.controls import GaussianNoise, NoOp, RandomSign
from kwbench.attacks.deepfool import DeepFool
from kwbench.attacks.fgsm import Fgsm
from kwbench.attacks.foolbox import Foolbox
from kwbench.attacks.grid import Grid
from kwbench.attacks.local_search import LocalSearch
from kwbench.attacks.mim import Mim
from kwbench.attacks.natural import ColourJitter, GaussianBlind, Rotation, Translation
from kwbench.attacks.pgd import Pgd
from kwbench.attacks.rays import Rays
from kwbench.attacks.square import Square
from kwbench.attacks.student import Student
from kwbench.attacks.submodules import Submodules
from kwbench.attacks.transfer import Transfer
from kwbench.attacks.user_attacks import is_user_attack, load_user_attack
from kwbench.errors import UsageError, did_you_mean
from kwbench.model import Model

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": Fgsm,
    "pgd": Pgd,
    "apgd": Apgd,
    "mim": Mim,
    "deepfool": DeepFool,
    "cw": CarliniWagner,
    "square": Square,
    "rays": Rays,
    "local-search": LocalSearch,
    "complete-search": CompleteSearch,
    "grid": Grid,
    "transfer": Transfer,
    "submodules": Submodules,
    "student": Student,
    "autoattack": AutoAttack,
    "autoattack-part": AutoAttackPart,
    "foolbox": Foolbox,
    "noop": NoOp,
    "gaussian-noise": GaussianNoise,
    "random-sign": RandomSign,
    "gaussian-blind": GaussianBlind,
    "translation": Translation,
    "rotation": Rotation,
    "colour-jitter": ColourJitter,
}


def build_attack(name: str, parameters: Mapping[str, Any], surrogate: Callable[[str], Model] | None = None) -> Attack:
    """Return the attack `name` with these parameters, and defaults for the rest.

    `foolbox:NAME` is Foolbox's attack NAME, with Foolbox's parameters; `path/to/file.py:Class` is the user's own. `surrogate`
    loads a model by the name that a transfer attack gives. Raises UsageError for an unknown attack or parameter, or a value
    out of range.
    """
    users = is_user_attack(name)
    kind_name, _, foolbox_name = (name, "", "") if users else name.partition(":")
    if not users and (kind_name not in ATTACKS or (foolbox_name and kind_name != "foolbox")):
        raise UsageError(f"attack {name!r} is unknown; {did_you_mean(name, ATTACKS, listed_by='kwbench attacks')}")
    kind = load_user_attack(name) if users else ATTACKS[kind_name]
    known = [field.name for field in fields(kind) if field.metadata.get("parameter", True)]
    if foolbox_name:
        own = {key: value for key, value in parameters.items() if key == "judged"}
        theirs = {key: value for key, value in parameters.items() if key != "judged"}
        parameters = {"attack": foolbox_name, "parameters": theirs, **own}
    for parameter in parameters:
        if parameter not in known:
            raise UsageError(f"attack {name!r} has no parameter {parameter!r}; {did_you_mean(parameter, known)}")
    try:
        # Strict validation of JSON builds the nested estimator from a mapping, and still refuses "3" for 3.
        attack: Attack = TypeAdapter(kind).validate_json(json.dumps(dict(parameters)))
    except ValidationError as invalid:
        raise UsageError(_error_message(name, invalid)) from None
    if attack.surrogate is None:
        return attack
    if surrogate is None:
        raise UsageError(f"attack {name!r} needs a surrogate model, and none can be loaded here")
    return replace(attack, source=surrogate(attack.surrogate))


def _error_message(name: str, invalid: ValidationError) -> str:
    first = invalid.errors()[0]
    if first["type"] == "missing":
        return f"attack {name!r} needs the parameter {first['loc'][-1]!r}"
    if first["type"] == "value_error":
        return f"attack {name!r}: {first['msg'].removeprefix('Value error, ')}"
    where = ".".join([name, *(str(part) for part in first["loc"])])
    return f"attack parameter {where}: {first['msg']}, got {first['input']!r}"


def parameters_of(attack: Attack) -> dict[str, Any]:
    """Return every parameter of an attack with its value, defaults included, as plain data; part of a run's identity."""
    hidden = {field.name for field in fields(attack) if not field.metadata.get("parameter", True)}
    shallow = {field.name: getattr(attack, field.name) for field in fields(attack) if field.name not in hidden}
    return {name: _plain(value) for name, value in shallow.items()}


def default_parameters(name: str) -> dict[str, Any]:
    """Return the parameters that users can set, with their defaults; None for a required one."""
    defaults: dict[str, Any] = {}
    for parameter in fields(ATTACKS[name]):
        if parameter.metadata.get("parameter", True):
            value = parameter.default_factory() if parameter.default_factory is not MISSING else parameter.default
            defaults[parameter.name] = None if value is MISSING else _plain(value)
    return defaults


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value
