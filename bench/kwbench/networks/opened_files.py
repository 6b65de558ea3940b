"""Files of the user's that are read while a block runs, such as the weights and settings that a factory opens.

Seen are files that Python opens. Those that a library reads by itself, as safetensors does, end up in what the module holds.
"""

import hashlib
import linecache
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kwbench.networks.code import is_installed

# Bytes that are hashed in full; of larger files, such as whole data sets, the ends. A second's work.
_WHOLE = 1 << 30
_END = 1 << 20

_recording: "ReadFiles | None" = None


class ReadFiles:
    """The files that were read, and those that were written, in a block of `recorded_reads`."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.written: set[str] = set()

    def contents(self, folder: Path, without: Collection[Path] = ()) -> list[bytes]:
        """Return the SHA-256 of each file of the user's but those in `without`, in order; names do not matter.

        Files in `folder`, or outside of system folders, of installed libraries and of the user's hidden folders are the
        user's. Files that were written in the same block are left out, since another process makes others, and so is source
        code that was read for a traceback or a warning, which happens once in a process.
        """
        remaining, digests = _WHOLE, []
        for name in sorted(self.names - self.written - {os.path.abspath(name) for name in linecache.cache}):
            path = Path(name)
            try:
                state = path.stat()
                if not path.is_file() or not _is_users(path, folder) or path.resolve() in without:
                    continue
                digests.append(_digest(path, state.st_size, whole=state.st_size <= remaining))
            except OSError:
                continue
            remaining -= min(state.st_size, remaining)
        return sorted(digests)


@contextmanager
def recorded_reads() -> Iterator[ReadFiles]:
    """Record which files this process opens for reading until the block ends."""
    global _recording  # noqa: PLW0603 - an audit hook stays for the whole process
    _add_hook()
    files = ReadFiles()
    before, _recording = _recording, files
    try:
        yield files
    finally:
        _recording = before


@cache
def _add_hook() -> None:
    sys.addaudithook(_observe)


def _observe(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or _recording is None:
        return
    path, _, flags = arguments
    if isinstance(path, str | bytes | os.PathLike):
        writes = (flags or 0) & (os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        (_recording.written if writes else _recording.names).add(os.path.abspath(os.fsdecode(path)))


def _is_users(path: Path, folder: Path) -> bool:
    if path.suffix == ".pyc" or is_installed(path):
        return False
    if path.is_relative_to(folder) or path.is_relative_to(Path.cwd()):
        return True
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and not any(path.is_relative_to(system) for system in _system_folders())


@cache
def _system_folders() -> tuple[str, ...]:
    return ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/run", "/var", sys.prefix, sys.base_prefix)


def _digest(path: Path, size: int, *, whole: bool) -> bytes:
    with path.open("rb") as file:
        if whole:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256(f"{size} ".encode() + file.read(_END))
        file.seek(-_END, os.SEEK_END)
        digest.update(file.read())
        return digest.digest()
