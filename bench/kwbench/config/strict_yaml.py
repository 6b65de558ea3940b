"""Strict YAML: files with exactly one meaning are read as plain data, and all others are refused with the position."""

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

_MAX_CHARACTERS = 1 << 20
# Keys, values and signs of a file. A registry has about 110 for each model; reading takes about 25 microseconds for each.
_MAX_TOKENS = 150_000
_REFUSED_TOKENS = {AnchorToken: "anchors", AliasToken: "aliases", TagToken: "tags", DirectiveToken: "directives"}


class Strict(BaseModel):
    """A frozen section of a YAML file that refuses unknown keys, wrong types, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Section = TypeVar("Section", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML 1.2 file.

    Raises CannotEvaluate if there is no such file. Raises UsageError unless the file is a mapping of text keys to plain values,
    in at most 2^20 characters and 150,000 tokens, without duplicate keys, anchors, aliases, merges, tags, directives, dates,
    NaN or infinity.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_MAX_CHARACTERS + 1)
    except UnicodeDecodeError as failure:
        raise UsageError(f"{path}: not a text file in UTF-8 ({failure.reason})") from None
    except OSError as failure:
        raise CannotEvaluate(f"{path}: cannot be read ({failure.strerror})") from None
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"{path}: more than {_MAX_CHARACTERS} characters, which no configuration needs")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Parse a text as `read_yaml` does a file; errors call it `name`."""

    class Refusing(Scanner):
        """Refuses tokens while the parser reads them; a pass of its own would double the time."""

        count = 0

        def get_token(self) -> Any:
            token = super().get_token()
            self.count += 1
            if self.count > _MAX_TOKENS:
                line = token.start_mark.line + 1
                raise UsageError(f"{name}:{line}: more than {_MAX_TOKENS} keys, values and signs, which no configuration needs")
            kind = _REFUSED_TOKENS.get(type(token))
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
        # The other lines of the message are ruamel's advice to programmers.
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
    """Return `data` as a section.

    Raises UsageError that names the file, `name`, and the key; for an unknown key with a suggestion.
    """
    try:
        return section.model_validate(data)
    except ValidationError as invalid:
        # A mistyped key is often also a missing one; the unknown key is the more helpful error.
        first = min(invalid.errors(), key=lambda error: error["type"] != "extra_forbidden")
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
    """Return the keys of the section at a path of keys and list indices."""
    annotation: Any = section
    for part in path:
        annotation = _annotation_below(annotation, part)
    return [key for kind in _alternatives(annotation) if _is_section(kind) for key in kind.model_fields]


def _annotation_below(annotation: Any, part: int | str) -> Any:
    for kind in _alternatives(annotation):
        if _is_section(kind) and part in kind.model_fields:
            return kind.model_fields[part].annotation
        if get_origin(kind) in (dict, list):
            return get_args(kind)[-1]
    return None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
