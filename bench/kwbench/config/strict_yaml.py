"""YAML as plain data, read strictly: one meaning for each file, and an error that names the place for everything else."""

import math
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scanner import Scanner
from ruamel.yaml.tokens import AliasToken, AnchorToken, DirectiveToken, ScalarToken, TagToken

from kwbench.errors import CannotEvaluate, UsageError, did_you_mean

_LARGEST = 1 << 20
_KINDS_REFUSED = {AnchorToken: "anchors", AliasToken: "aliases", TagToken: "tags", DirectiveToken: "directives"}


class Strict(BaseModel):
    """A frozen section of a YAML file that refuses unknown keys, wrong types, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Section = TypeVar("Section", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML 1.2 file.

    Raises CannotEvaluate if there is no such file, UsageError for anything but a mapping of text keys to plain values, at
    most 2^20 characters, without duplicate keys, anchors, aliases, merges, tags, directives, dates, NaN and infinity.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_LARGEST + 1)
    except UnicodeDecodeError as failure:
        raise UsageError(f"{path}: not a text file in UTF-8 ({failure.reason})") from None
    except OSError as failure:
        raise CannotEvaluate(f"{path}: cannot be read ({failure.strerror})") from None
    if len(text) > _LARGEST:
        raise UsageError(f"{path}: more than {_LARGEST} characters, which no configuration needs")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """The same for a text; `name` is what errors call it."""

    class Refusing(Scanner):
        """Looks at tokens as they pass: to read them twice takes twice as long."""

        def get_token(self) -> Any:
            token = super().get_token()
            kind = _KINDS_REFUSED.get(type(token))
            if isinstance(token, ScalarToken) and token.plain and token.value == "<<":
                kind = "merges"
            if kind is not None:
                raise UsageError(f"{name}:{token.start_mark.line + 1}: {kind} are not allowed; write the value out")
            return token

    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner = Refusing
    try:
        data = yaml.load(text)
    except MarkedYAMLError as failure:
        mark = failure.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        # The first line says it; the others are ruamel's advice to programmers.
        raise UsageError(f"{where}: {str(failure.problem).splitlines()[0]}") from None
    except (YAMLError, RecursionError, ValueError) as failure:
        raise UsageError(f"{name}: not valid YAML ({str(failure).splitlines()[0] if str(failure) else 'too deep'})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{name}: must hold a mapping of keys to values")
    _require_plain(data, "", name)
    return data


def _require_plain(value: Any, key: str, name: str) -> None:
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            if not isinstance(inner_key, str):
                raise UsageError(f"{name}: the key {inner_key!r} is not text; put it in quotes")
            _require_plain(inner, f"{key}.{inner_key}" if key else inner_key, name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _require_plain(inner, f"{key}.{index}", name)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{name}: {key}: must be a finite number, got {value}")
    elif value is not None and not isinstance(value, str | int):
        raise UsageError(f"{name}: {key}: {value} would be read as a {type(value).__name__}; put it in quotes")


def validate(section: type[Section], data: Any, name: str) -> Section:
    """`data` as a checked section. Raises UsageError that names the file and the key, with a suggestion where one helps."""
    try:
        return section.model_validate(data)
    except ValidationError as invalid:
        # A mistyped key is also a missing one; what was written says more than what was not.
        first = min(invalid.errors(), key=lambda each: each["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _keys_at(section, first["loc"][:-1])
            raise UsageError(f"{name}: unknown key '{key}'; {did_you_mean(str(first['loc'][-1]), known)}") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("model_type", "dict_type"):
            message = "must be a mapping of keys to values"
        got = "" if first["type"] == "missing" else f", got {_shortened(repr(first['input']))}"
        raise UsageError(f"{name}: {key}: {message}{got}") from None


def _shortened(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[:limit] + " ..."


def _keys_at(section: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    here: Any = section
    for part in path:
        here = _below(here, part)
    return [key for each in _alternatives(here) if _is_section(each) for key in each.model_fields]


def _below(annotation: Any, part: int | str) -> Any:
    for each in _alternatives(annotation):
        if _is_section(each) and part in each.model_fields:
            return each.model_fields[part].annotation
        if get_origin(each) in (dict, list):
            return get_args(each)[-1]
    return None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
