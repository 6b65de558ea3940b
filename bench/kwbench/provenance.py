"""Where a number comes from: versions, device, code, and digests of what identifies a run."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("kwbench", "torch", "torchvision", "numpy", "scipy", "pyautoattack", "foolbox")
# Modules that turn outcomes into words and pages; everything else can change an outcome.
_HARMLESS = (
    *("cli", "report", "check", "standing", "statistics", "store", "errors", "doctor", "training", "progress", "wording"),
    *("convert", "counting", "experiments", "study", "measured", "claims"),
)


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 over a value's canonical JSON. Raises ValueError for NaN and infinity."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The installed versions of what numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The computer, as far as numbers and times depend on it."""
    return {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}


@cache
def code_digest(*also: str) -> str:
    """SHA-256 over the source files that can change an outcome, so that rows of different code are never mixed.

    `also`: modules that cannot, but can change what is measured otherwise.
    """
    root = Path(__file__).parent
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        module = relative.parts[0].removesuffix(".py")
        if module not in _HARMLESS or module in also:
            sha.update(relative.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()
