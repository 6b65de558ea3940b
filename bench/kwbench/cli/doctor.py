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
class Diagnosis:
    """One line of the doctor's: what was looked at, what was found, and how to mend it if that is needed."""

    subject: str
    level: Level
    found: str
    remedy: str = ""


def examine(database: str) -> list[Diagnosis]:
    """Look at everything, and at the record at this path or URL; never raises."""
    looks: dict[str, Callable[[], list[Diagnosis]]] = {
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


def _safely(subject: str, look: Callable[[], list[Diagnosis]]) -> list[Diagnosis]:
    try:
        return look()
    except Exception as failure:  # noqa: BLE001 - a broken installation may raise anything
        return [Diagnosis(subject, "problem", f"{type(failure).__name__}: {failure}")]


def _python() -> list[Diagnosis]:
    return [Diagnosis("python", "ok", sys.version.split()[0])]


def _packages() -> list[Diagnosis]:
    findings = []
    for package in ("pyautoattack", "foolbox", "pandas", "sqlalchemy", "jinja2", "safetensors", "scikit-learn", "scipy"):
        try:
            findings.append(Diagnosis(package, "ok", version(package)))
        except PackageNotFoundError:
            findings.append(Diagnosis(package, "problem", "not installed", f"pip install {package}"))
    return findings


def _torch() -> list[Diagnosis]:
    import torch

    threads = torch.get_num_threads()
    return [Diagnosis("torch", "ok", f"{torch.__version__}, {threads} threads")]


def _torchvision() -> list[Diagnosis]:
    from kwbench.torchvision_schemas import import_torchvision

    torchvision = import_torchvision()
    findings = [Diagnosis("torchvision", "ok", torchvision.__version__)]
    extension = importlib.import_module("torchvision.extension")
    if not extension._has_ops():
        findings.append(
            Diagnosis(
                "torchvision's extension",
                "note",
                "not loaded: it was built for another torch; models, transforms and data sets work without it",
                "install the torch and torchvision builds that belong together if you need its operators",
            )
        )
    return findings


def _device() -> list[Diagnosis]:
    import torch

    if torch.cuda.is_available():
        return [Diagnosis("device", "ok", torch.cuda.get_device_name())]
    return [Diagnosis("device", "note", "no GPU that torch can use; evaluations run on the processor")]


def _sqlite() -> list[Diagnosis]:
    return [Diagnosis("sqlite", "ok", f"{sqlite3.sqlite_version}, rollback journal")]


def _record(database: str) -> list[Diagnosis]:
    from kwbench.record.store import Store

    # A password stands before it.
    name = database.rpartition("@")[2]
    file = record_file(database)
    if file is not None and not file.exists():
        return [Diagnosis("record", "ok", f"{name}: none yet; kwbench evaluate makes it")]
    try:
        Store.open(database).close()
    except KwbenchError as failure:
        return [Diagnosis("record", "problem", str(failure), "restore it from a copy, or name another with --db")]
    return [Diagnosis("record", "ok", name)]


def _disk(database: Path) -> list[Diagnosis]:
    # Where the folder is yet to be made, what holds it counts.
    folder = next(each for each in database.resolve().parents if each.is_dir())
    free = shutil.disk_usage(folder).free
    if free < 200_000_000:
        remedy = "make room, or name another file with --db"
        return [Diagnosis("disk", "problem", f"{free / 1e6:.0f} MB free in {folder}", remedy)]
    return [Diagnosis("disk", "ok", f"{free / 1e9:.1f} GB free in {folder}")]


def _registry() -> list[Diagnosis]:
    try:
        registry = read_registry()
    except KwbenchError as failure:
        return [Diagnosis("registry", "problem", str(failure), "mend the file, or name another with --registry")]
    missing: dict[Path, list[str]] = {}
    damaged: dict[Path, list[str]] = {}
    for name, entry in registry.entries.items():
        if entry.checkpoint is None and entry.recipe is None:
            continue
        path, home = registry.checkpoint_path(name), registry.owner_of(name).path
        if not path.is_file():
            missing.setdefault(home, []).append(name)
        elif entry.checkpoint is not None and hashlib.sha256(path.read_bytes()).hexdigest() != entry.checkpoint.sha256:
            damaged.setdefault(home, []).append(name)
    findings = [
        Diagnosis(
            "checkpoints",
            "problem",
            f"{home}: the checkpoint is not the pinned one for {', '.join(names)}",
            "restore the files, or kwbench train NAME --pin",
        )
        for home, names in damaged.items()
    ]
    findings += [
        Diagnosis(
            "checkpoints",
            "note",
            f"{home}: no checkpoint for {', '.join(names)}",
            "kwbench train NAME --pin makes one, kwbench convert NAME --download fetches a published one",
        )
        for home, names in missing.items()
    ]
    return findings or [Diagnosis("registry", "ok", f"{registry.path}: {len(registry.entries)} models")]
