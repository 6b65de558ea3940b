"""Files that appear whole or not at all, and the one behind a record."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from kwbench.errors import CannotEvaluate


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8, under a name beside it, then give it its own: no reader and no kill ever sees half of it.

    Folders on the way are made. Raises CannotEvaluate if it cannot be written; what was there before stays.
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
    """Where a record lies that is named by a path or a SQLAlchemy URL; None if it is no file."""
    path = database.removeprefix("sqlite:///")
    return None if "://" in path else Path(path)
