"""Confinement of a process that runs a stranger's code: its environment, its files, its connections.

Linux enforces it by Landlock, from version 5.13 on (https://docs.kernel.org/userspace-api/landlock.html): a process may give up
rights for itself and its children, without privileges, and never gets them back.
"""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Variables that a program needs to run, and no secrets. Those that begin like the second ones set up libraries.
_NAMES = {"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SYSTEMROOT"}
_PREFIXES = ("LC_", "PYTHON", "OMP_", "MKL_", "KMP_", "OPENBLAS_")

# System calls, the same on all processors that PyTorch has Linux wheels for, and a flag.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
# From linux/prctl.h.
_SET_NO_NEW_PRIVILEGES = 38
# Rights to change files: to write, to remove folders and files, and to make nodes of seven kinds; bits 1 and 4 to 12.
_WRITE, _WRITE_FILES = 1 << 1, 1 << 1 | sum(1 << bit for bit in range(4, 13))
# By version of Landlock: to link between folders, to truncate; to bind and connect TCP; signals and abstract sockets.
_LINK, _TRUNCATE, _TCP, _OUTSIDE = 1 << 13, 1 << 14, 3, 3


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class Confinement:
    """A temporary folder, the only place that a confined process may write to."""

    def __init__(self) -> None:
        """Create the folder."""
        self.folder = Path(tempfile.mkdtemp(prefix="kwbench-"))

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Let processes that start in this block inherit only harmless variables, and the folder for temporary files."""
        before = dict(os.environ)
        kept = {name: value for name, value in before.items() if name in _NAMES or name.startswith(_PREFIXES)}
        os.environ.clear()
        os.environ.update(kept | {"TMPDIR": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def confine(folder: Path) -> bool:
    """Keep this process, and those that it starts, from writing outside a folder, from TCP and from signals to others.

    Returns whether the system enforces it for files. It needs a version of Linux, of 2022 or later for connections.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, _VERSION)
    if version < 1:
        return False
    files = _WRITE_FILES | (_LINK if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = _Ruleset(files, _TCP if version >= 4 else 0, _OUTSIDE if version >= 6 else 0)
    # Earlier versions know only the first fields.
    size = ctypes.sizeof(ctypes.c_uint64) * (1 if version < 4 else 2 if version < 6 else 3)
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    if rules < 0:
        return False
    try:
        for path, allowed in ((str(folder), files), ("/dev/shm", files), ("/dev/null", files & (_WRITE | _TRUNCATE))):
            _allow(libc, rules, path, allowed)
        libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return bool(libc.syscall(_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, allowed: int) -> None:
    """Add a rule, if the path exists."""
    with suppress(OSError):
        parent = os.open(path, os.O_PATH)
        try:
            libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(_PathBeneath(allowed, parent)), 0)
        finally:
            os.close(parent)
