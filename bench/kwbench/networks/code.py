"""Code of functions, as bytes for a hash, and the names of the globals that it may use."""

import site
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any


@lru_cache(maxsize=4096)
def is_installed(file: str | Path) -> bool:
    """Return whether a file belongs to Python, to an installed library or to kwbench."""
    return str(file).startswith("<frozen ") or any(Path(file).resolve().is_relative_to(path) for path in _library_folders())


def code_content(code: CodeType) -> bytes:
    """Return what code does, without its place. `marshal` would not do: its bytes depend on reference counts."""
    return repr(_described(code)).encode()


def global_names(code: CodeType) -> Iterator[str]:
    """Yield the names that code and the functions in it look up: globals, and attributes of anything."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from global_names(constant)


@lru_cache(maxsize=1)
def _library_folders() -> tuple[Path, ...]:
    libraries = [sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [*libraries, *site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    # Folders elsewhere into which packages were installed, as `pip install --target` does.
    folders += [folder for folder in sys.path if next(Path(folder or ".").glob("*.dist-info"), None) is not None]
    return tuple(Path(folder).resolve() for folder in folders)


def _described(code: CodeType) -> tuple[Any, ...]:
    constants = [
        _described(constant)
        if isinstance(constant, CodeType)
        else sorted(map(repr, constant))  # the order of a set changes from process to process
        if isinstance(constant, frozenset)
        else repr(constant)
        for constant in code.co_consts
    ]
    return (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_flags, constants)
