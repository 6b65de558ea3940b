"""YAML as plain data, read strictly: one meaning for each file, and an error that names the place for everything else."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.tokens import AliasToken, AnchorToken, TagToken

from kwbench.errors import CannotEvaluate, UsageError, did_you_mean

_LARGEST = 1 << 20


class Strict(BaseModel):
    """A frozen section of a YAML file that refuses unknown keys, wrong types, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Section = TypeVar("Section", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML 1.2 file.

    Raises CannotEvaluate if there is no such file, UsageError for anything but a mapping without duplicate keys, anchors,
    aliases and tags, of at most 1 MiB.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as failure:
        raise UsageError(f"{path}: not a text file in UTF-8 ({failure.reason})") from None
    except OSError as failure:
        raise CannotEvaluate(f"{path}: cannot be read ({failure.strerror})") from None
    if len(text) > _LARGEST:
        raise UsageError(f"{path}: {len(text)} characters, more than any configuration needs ({_LARGEST})")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """The same for a text; `name` is what errors call it."""
    yaml = YAML(typ="safe", pure=True)
    try:
        for token in yaml.scan(text):
            if isinstance(token, AnchorToken | AliasToken | TagToken):
                kind = {AnchorToken: "anchors", AliasToken: "aliases", TagToken: "tags"}[type(token)]
                raise UsageError(f"{name}:{token.start_mark.line + 1}: {kind} are not allowed; write the value out")
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
    return data


def validate(section: type[Section], data: Any, name: str) -> Section:
    """`data` as a checked section. Raises UsageError that names the file and the key, with a suggestion where one helps."""
    try:
        return section.model_validate(data)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _keys_at(section, first["loc"][:-1])
            raise UsageError(f"{name}: unknown key '{key}'; {did_you_mean(str(first['loc'][-1]), known)}") from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise UsageError(f"{name}: {key}: {message}{got}") from None


def _keys_at(section: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    fields = section.model_fields
    for part in path:
        annotation = fields[part].annotation if isinstance(part, str) and part in fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        inner = [each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)]
        if not inner:
            return []
        fields = inner[0].model_fields
    return list(fields)
