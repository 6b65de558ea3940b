"""Atomic writes, reads that never wait, and the file behind the address of a record."""

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from kwbench.errors import CannotEvaluate


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, atomically: to a temporary file in the same folder, which is then renamed.

    Missing folders are created. Raises CannotEvaluate if the file cannot be written; an existing file is then unchanged.
    """
    draft = None
    # A link to a file is kept, and the file behind it written.
    path = path.resolve() if path.is_symlink() else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            draft = Path(file.name)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as failure:
        if draft is not None:
            with suppress(OSError):
                draft.unlink()
        raise CannotEvaluate(f"{path}: cannot be written ({failure.strerror})") from None


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError, also for a pipe or device, which could make the reader wait or never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: Path) -> bytes:
    """Return the content of a file. Raises OSError as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def cache_folder(name: str) -> Path:
    """Return the folder of this user for files that may be deleted at any time: XDG_CACHE_HOME/kwbench/NAME, by default below
    ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kwbench" / name


def record_file(database: str) -> Path | None:
    """Return the file of a record given by a path or a SQLAlchemy URL; None if it is not a file."""
    path = database.removeprefix("sqlite:///")
    return None if "://" in path else Path(path)
