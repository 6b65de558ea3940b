"""Provenance of a run: versions, machine and code. It is stored and shown, and identifies nothing."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("kwbench", "torch", "torchvision", "numpy", "scipy", "pyautoattack", "foolbox")


def digest(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a value's canonical JSON. Raises ValueError for NaN and infinity."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the installed versions of Python, kwbench and the libraries that numbers may depend on."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def machine() -> dict[str, Any]:
    """Return the platform, processor and number of cores."""
    return {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}


@cache
def code_digest() -> str:
    """Return the SHA-256 of the package's Python files, paths included."""
    root = Path(__file__).resolve().parents[1]
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sha.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()


@cache
def commit() -> str | None:
    """Return the git commit of the source tree that the package runs from, with "+changes" if it has any; None elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no", "--", "bench/kwbench") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def code() -> dict[str, Any]:
    """Return where the code of a run comes from: package versions, a digest of the package, and the commit if there is one."""
    return {"versions": versions(), "code_sha256": code_digest(), "commit": commit()}
