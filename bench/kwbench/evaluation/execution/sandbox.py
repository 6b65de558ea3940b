"""A sandbox of bubblewrap (https://github.com/containers/bubblewrap), in which a process is started.

It sees the programs and libraries of the system and of Python, and the files that are named, all of them read-only. It has a
temporary folder to write to, no network, and sees no process but its own.
"""

import glob
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from kwbench.errors import UsageError

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys")
# What programs need of the configuration, which may hold secrets elsewhere.
_CONFIGURATION = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "passwd", "nsswitch.conf")
_GPUS = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
_NAMESPACES = ("--unshare-all", "--die-with-parent", "--new-session")


def write_launcher(folder: Path, readable: Collection[Path]) -> Path:
    """Write a program that starts Python in a sandbox, and return its path.

    Args:
        folder: an existing folder, the only one that may be written to; the program is written into it.
        readable: files and folders that may be read, beside the system's and Python's.

    Raises UsageError where there is no bubblewrap, or the system does not allow it.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise UsageError("--sandbox: needs bubblewrap, the program bwrap; --untrusted confines the process without it")
    words = [program, *_NAMESPACES, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in (*_SYSTEM, *(f"/etc/{name}" for name in _CONFIGURATION)):
        words += ["--ro-bind-try", path, path]
    for path in (path for pattern in _GPUS for path in glob.glob(pattern)):
        words += ["--dev-bind-try", path, path]
    # Its working folder must exist; no more of it is seen unless it is named.
    words += ["--dir", str(Path.cwd())]
    for path in (*_python(), *(str(path.resolve()) for path in readable)):
        words += ["--ro-bind-try", path, path]
    words += ["--bind", str(folder), str(folder), "--"]
    trial = subprocess.run([*words, "/bin/true"], capture_output=True, text=True, check=False)
    if trial.returncode != 0:
        raise UsageError(f"--sandbox: bubblewrap does not work here ({trial.stderr.strip()}); --untrusted works without it")
    launcher = folder / "python"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} {shlex.quote(sys.executable)} "$@"\n')
    launcher.chmod(0o700)
    return launcher


def _python() -> list[str]:
    """Return the folders that Python imports from, except the working folder and those above it."""
    folders = {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, *sys.path) if path}
    here = Path.cwd()
    return sorted(str(folder) for folder in folders if folder.exists() and not here.is_relative_to(folder))
