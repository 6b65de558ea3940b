"""Code of classes and functions that are not installed, as bytes for a hash."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from kwbench.networks.loaded import is_installed, plain_values


def class_code(kind: type) -> bytes:
    """Return the source of a class; where it has none, its members' bytecode and values. Empty if it is installed."""
    try:
        file = inspect.getsourcefile(kind)
        if file is not None and is_installed(Path(file)):
            return b""
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):
        return b"".join(
            name.encode() + code for name, member in sorted(vars(kind).items()) for code in _class_member_code(name, member)
        )


def member_code(member: Any) -> Iterator[bytes]:
    """Yield the bytecode and defaults of a function, method or property, and of what it decorates, unless installed."""
    if isinstance(member, property):
        for accessor in (member.fget, member.fset):
            yield from member_code(accessor)
        return
    if isinstance(member, staticmethod | classmethod) or inspect.ismethod(member):
        member = member.__func__
    if not isinstance(member, FunctionType):
        return
    if not is_installed(Path(member.__code__.co_filename)):
        yield repr(_described(member.__code__)).encode()
        for address, value in plain_values("defaults", [member.__defaults__, member.__kwdefaults__]):
            yield address.encode() + value
    yield from member_code(getattr(member, "__wrapped__", None))


def _class_member_code(name: str, member: Any) -> Iterator[bytes]:
    yield from member_code(member)
    if not name.startswith("__"):  # Python's own, such as the docstring
        yield from (value for _, value in plain_values(name, member))


def _described(code: CodeType) -> tuple[Any, ...]:
    """Return what code does, without its place. `marshal` would not do: its bytes depend on reference counts."""
    constants = [
        _described(constant)
        if isinstance(constant, CodeType)
        else sorted(map(repr, constant))  # the order of a set changes from process to process
        if isinstance(constant, frozenset)
        else repr(constant)
        for constant in code.co_consts
    ]
    return (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_flags, constants)
