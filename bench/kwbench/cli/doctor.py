"""What is installed, what is wrong, and how to mend it."""

import hashlib
import importlib
import shutil
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from kwbench.config.registry import read_registry
from kwbench.errors import KwbenchError
from kwbench.files import record_file

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's: what was looked at, what was found, and how to mend it if that is needed."""

    subject: str
    level: Level
    found: str
    remedy: str = ""


def examine(database: str) -> list[Finding]:
    """Look at everything, and at the record at this path or URL; never raises."""
    looks: dict[str, Callable[[], list[Finding]]] = {
        "python": _python,
        "packages": _packages,
        "torch": _torch,
        "torchvision": _torchvision,
        "device": _device,
        "sqlite": _sqlite,
        "record": lambda: _record(database),
        "disk": lambda: _disk(record_file(database) or Path("record")),
        "registry": _registry,
    }
    return [finding for subject, look in looks.items() for finding in _safely(subject, look)]


def _safely(subject: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Exception as failure:  # noqa: BLE001 - a broken installation may raise anything
        return [Finding(subject, "problem", f"{type(failure).__name__}: {failure}")]


def _python() -> list[Finding]:
    return [Finding("python", "ok", sys.version.split()[0])]


def _packages() -> list[Finding]:
    findings = []
    for package in ("pyautoattack", "foolbox", "pandas", "sqlalchemy", "jinja2", "safetensors", "scikit-learn", "scipy"):
        try:
            findings.append(Finding(package, "ok", version(package)))
        except PackageNotFoundError:
            findings.append(Finding(package, "problem", "not installed", f"pip install {package}"))
    return findings


def _torch() -> list[Finding]:
    import torch

    threads = torch.get_num_threads()
    return [Finding("torch", "ok", f"{torch.__version__}, {threads} threads")]


def _torchvision() -> list[Finding]:
    from kwbench.torchvision_schemas import import_torchvision

    torchvision = import_torchvision()
    findings = [Finding("torchvision", "ok", torchvision.__version__)]
    extension = importlib.import_module("torchvision.extension")
    if not extension._has_ops():
        findings.append(
            Finding(
                "torchvision's extension",
                "note",
                "not loaded: it was built for another torch; models, transforms and data sets work without it",
                "install the torch and torchvision builds that belong together if you need its operators",
            )
        )
    return findings


def _device() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        return [Finding("device", "ok", torch.cuda.get_device_name())]
    return [Finding("device", "note", "no GPU that torch can use; evaluations run on the processor")]


def _sqlite() -> list[Finding]:
    return [Finding("sqlite", "ok", f"{sqlite3.sqlite_version}, rollback journal")]


def _record(database: str) -> list[Finding]:
    from kwbench.record.store import Store

    # A password stands before it.
    name = database.rpartition("@")[2]
    file = record_file(database)
    if file is not None and not file.exists():
        return [Finding("record", "ok", f"{name}: none yet; kwbench evaluate makes it")]
    try:
        Store.open(database).close()
    except KwbenchError as failure:
        return [Finding("record", "problem", str(failure), "restore it from a copy, or name another with --db")]
    return [Finding("record", "ok", name)]


def _disk(database: Path) -> list[Finding]:
    # Where the folder is yet to be made, what holds it counts.
    folder = next(each for each in database.resolve().parents if each.is_dir())
    free = shutil.disk_usage(folder).free
    if free < 200_000_000:
        remedy = "make room, or name another file with --db"
        return [Finding("disk", "problem", f"{free / 1e6:.0f} MB free in {folder}", remedy)]
    return [Finding("disk", "ok", f"{free / 1e9:.1f} GB free in {folder}")]


def _registry() -> list[Finding]:
    try:
        registry = read_registry()
    except KwbenchError as failure:
        return [Finding("registry", "problem", str(failure), "mend the file, or name another with --registry")]
    missing: dict[Path, list[str]] = {}
    damaged: dict[Path, list[str]] = {}
    for name, entry in registry.entries.items():
        if entry.checkpoint is None and entry.recipe is None:
            continue
        path, home = registry.checkpoint_path(name), registry.holding(name).path
        if not path.is_file():
            missing.setdefault(home, []).append(name)
        elif entry.checkpoint is not None and hashlib.sha256(path.read_bytes()).hexdigest() != entry.checkpoint.sha256:
            damaged.setdefault(home, []).append(name)
    findings = [
        Finding(
            "checkpoints",
            "problem",
            f"{home}: the checkpoint is not the pinned one for {', '.join(names)}",
            "restore the files, or kwbench train NAME --pin",
        )
        for home, names in damaged.items()
    ]
    findings += [
        Finding(
            "checkpoints",
            "note",
            f"{home}: no checkpoint for {', '.join(names)}",
            "kwbench train NAME --pin makes one, kwbench convert NAME --download fetches a published one",
        )
        for home, names in missing.items()
    ]
    return findings or [Finding("registry", "ok", f"{registry.path}: {len(registry.entries)} models")]
