"""Pin a checkpoint: write its path and hash into the registry file."""

import hashlib
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from kwbench.config.registry import DEFAULT_DATASET, Registry
from kwbench.errors import CannotEvaluate, UsageError

# Seconds to wait for other processes that pin a checkpoint.
_PATIENCE = 60


def require_pinnable(registry: Registry, name: str, file: Path) -> str:
    """Return the path under which the entry `name` can pin this checkpoint, relative to the registry's folder.

    Raises UsageError if the file does not lie below that folder. It need not exist.
    """
    root = _root(registry.owner_of(name))
    try:
        return file.resolve().relative_to(root).as_posix()
    except ValueError:
        raise UsageError(f"{file}: a pinned checkpoint must lie below {root}") from None


def pin_checkpoint(registry: Registry, name: str, file: Path, sha256: str) -> None:
    """Write a checkpoint's path and hash into the registry file, and leave everything else, comments included, unchanged.

    Raises UsageError if the checkpoint does not lie below the registry's folder, CannotEvaluate if the registry cannot be
    locked or written.
    """
    relative = require_pinnable(registry, name, file)
    registry = registry.owner_of(name)
    # Several models may finish training at the same time; each pin must survive.
    lock = Path(tempfile.gettempdir()) / f"kwbench-{hashlib.sha256(str(_root(registry)).encode()).hexdigest()[:16]}.lock"
    try:
        with FileLock(lock, timeout=_PATIENCE):
            _write_pin(registry, name, relative, sha256)
    except OSError as failure:  # a Timeout, too
        reason = f"held by another process for {_PATIENCE} s" if isinstance(failure, Timeout) else failure.strerror
        raise CannotEvaluate(f"{registry.path}: the checkpoint cannot be pinned; {lock}: {reason}") from None


def _root(registry: Registry) -> Path:
    return registry.path.parent.resolve()


def _write_pin(registry: Registry, name: str, relative: str, sha256: str) -> None:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1 << 20  # no line is folded
    data = yaml.load(registry.path.read_text(encoding="utf-8"))
    key = name if name in data["models"] else f"{DEFAULT_DATASET}/{name}"
    entry = data["models"][key]
    pinned = {"file": relative, "sha256": DoubleQuotedScalarString(sha256)}
    if "checkpoint" in entry:
        entry["checkpoint"].update(pinned)
    else:
        last = _last_block(entry)
        entry["checkpoint"] = CommentedMap(pinned)
        _move_comment_below(last, entry["checkpoint"])
    # A link to a registry stays one.
    path = registry.path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as stream:
        yaml.dump(data, stream)
    draft.replace(path)


def _last_block(mapping: CommentedMap) -> CommentedMap:
    """Return the innermost mapping that ends on the last line of `mapping`."""
    value = mapping[list(mapping)[-1]]
    return _last_block(value) if isinstance(value, CommentedMap) and not value.fa.flow_style() else mapping


def _move_comment_below(earlier: CommentedMap, later: CommentedMap) -> None:
    """Move the comment lines after `earlier` behind `later`.

    They are about the next entry, but the parser attaches them to the mapping above.
    """
    tokens = earlier.ca.items.get(list(earlier)[-1])
    if tokens is None or tokens[2] is None:
        return
    beside, newline, below = tokens[2].value.partition("\n")
    if not below:
        return
    tokens[2].value = beside + newline
    later.ca.items[list(later)[-1]] = [None, None, CommentToken("\n" + below, CommentMark(0), None), None]
