"""Attacks that users define in Python code of their own: path/to/file.py:Class, or package.module:Class."""

import hashlib
import inspect
import sys
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import get_args

from kwbench.attacks.attack import Attack, Needs
from kwbench.errors import UsageError
from kwbench.networks.user_code import import_code, imported_sources, surroundings
from kwbench.networks.user_files import naming_failures
from kwbench.threat import Norm

_HOW = "an attack of your own is written path/to/file.py:Class, with a subclass of kwbench.attacks.attack.Attack"


def is_user_attack(name: str) -> bool:
    """Whether an attack's name refers to the user's code; `foolbox:NAME` does not."""
    source, colon, _ = name.rpartition(":")
    return bool(colon) and "." in source


def load_user_attack(name: str) -> type[Attack]:
    """Return the class of an attack in the user's code, whose hash becomes part of a run's identity.

    The hash covers the file and the modules that it imports other than installed ones. This runs the code in this process.

    Raises:
        UsageError: there is no such file or class, or the class is no attack.
        CannotEvaluate: the code raises.
    """
    source, _, class_name = name.rpartition(":")
    path = Path(source)
    if source.endswith(".py") and not path.is_file():
        raise UsageError(f"{source}: no such file; {_HOW}")
    return _load(source, class_name, str(path.resolve()), path.read_bytes() if path.is_file() else b"")


@lru_cache(maxsize=16)
def _load(source: str, class_name: str, place: str, content: bytes) -> type[Attack]:
    """Import the class; `place` and `content` are only cache keys that change with the file."""
    before = set(sys.modules)
    with surroundings(source), naming_failures(source) as failing:
        failing.append("importing it")
        namespace, folder = import_code(source)
    kind = getattr(namespace, class_name, None)
    if not (inspect.isclass(kind) and issubclass(kind, Attack)):
        attacks = [key for key, value in vars(namespace).items() if _is_defined_in(namespace, value)]
        raise UsageError(f"{source}: has no attack {class_name!r}; it defines: {', '.join(attacks) or 'none'}; {_HOW}")
    if not is_dataclass(kind):
        kind = dataclass(frozen=True)(kind)
    norms, needs = getattr(kind, "norms", None), getattr(kind, "needs", None)
    known = get_args(Norm)
    if not isinstance(norms, frozenset) or not norms or not norms <= set(known):
        raise UsageError(f"{source}:{class_name}: norms must be a frozenset of {', '.join(known)}")
    if needs not in get_args(Needs):
        raise UsageError(f"{source}:{class_name}: needs must be one of {', '.join(get_args(Needs))}")
    if inspect.isabstract(kind):
        raise UsageError(f"{source}:{class_name}: lacks {', '.join(sorted(kind.__abstractmethods__))}")
    own = Path(namespace.__file__) if namespace.__file__ else folder
    digest = hashlib.sha256(own.read_bytes() if own.is_file() else b"")
    for imported, code in sorted(imported_sources(folder, set(sys.modules) - before)):
        digest.update(imported.encode() + code)
    kind.code_sha256 = digest.hexdigest()
    return kind


def _is_defined_in(namespace: ModuleType, value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Attack) and value.__module__ == namespace.__name__
