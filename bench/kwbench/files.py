"""Atomic writes, and the file behind the address of a record."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from kwbench.errors import CannotEvaluate


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, atomically: to a temporary file in the same folder, which is then renamed.

    Missing folders are created. Raises CannotEvaluate if the file cannot be written; an existing file is then unchanged.
    """
    draft = None
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


def record_file(database: str) -> Path | None:
    """Return the file of a record given by a path or a SQLAlchemy URL; None if it is not a file."""
    path = database.removeprefix("sqlite:///")
    return None if "://" in path else Path(path)
