"""Examine an installation: what is installed, what is wrong, and how to fix it."""

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
    """The result of one examination: its subject, the observation, and a remedy if one is needed."""

    subject: str
    level: Level
    observation: str
    remedy: str = ""


def examine(database: str) -> list[Diagnosis]:
    """Examine the installation, and the database at this path or URL. Never raises."""
    examinations: dict[str, Callable[[], list[Diagnosis]]] = {
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
    return [diagnosis for subject, examination in examinations.items() for diagnosis in _safely(subject, examination)]


def _safely(subject: str, examination: Callable[[], list[Diagnosis]]) -> list[Diagnosis]:
    try:
        return examination()
    except Exception as failure:  # noqa: BLE001 - a broken installation may raise anything
        return [Diagnosis(subject, "problem", f"{type(failure).__name__}: {failure}")]


def _python() -> list[Diagnosis]:
    return [Diagnosis("python", "ok", sys.version.split()[0])]


def _packages() -> list[Diagnosis]:
    diagnoses = []
    for package in ("pyautoattack", "foolbox", "pandas", "sqlalchemy", "jinja2", "safetensors", "scikit-learn", "scipy"):
        try:
            diagnoses.append(Diagnosis(package, "ok", version(package)))
        except PackageNotFoundError:
            diagnoses.append(Diagnosis(package, "problem", "not installed", f"pip install {package}"))
    return diagnoses


def _torch() -> list[Diagnosis]:
    import torch

    threads = torch.get_num_threads()
    return [Diagnosis("torch", "ok", f"{torch.__version__}, {threads} threads")]


def _torchvision() -> list[Diagnosis]:
    from kwbench.torchvision_schemas import import_torchvision

    torchvision = import_torchvision()
    diagnoses = [Diagnosis("torchvision", "ok", torchvision.__version__)]
    extension = importlib.import_module("torchvision.extension")
    if not extension._has_ops():
        diagnoses.append(
            Diagnosis(
                "torchvision's extension",
                "note",
                "not loaded: it was built for another torch; models, transforms and data sets work without it",
                "if you need its operators, install builds of torch and torchvision that belong together",
            )
        )
    return diagnoses


def _device() -> list[Diagnosis]:
    import torch

    if torch.cuda.is_available():
        return [Diagnosis("device", "ok", torch.cuda.get_device_name())]
    return [Diagnosis("device", "note", "no GPU that torch can use; evaluations run on the CPU")]


def _sqlite() -> list[Diagnosis]:
    return [Diagnosis("sqlite", "ok", f"{sqlite3.sqlite_version}, rollback journal")]


def _record(database: str) -> list[Diagnosis]:
    from kwbench.record.store import Store

    # Without the user and password of a URL.
    name = database.rpartition("@")[2]
    file = record_file(database)
    if file is not None and not file.exists():
        return [Diagnosis("record", "ok", f"{name}: none yet; kwbench evaluate creates it")]
    try:
        Store.open(database).close()
    except KwbenchError as failure:
        return [Diagnosis("record", "problem", str(failure), "restore it from a backup, or name another with --db")]
    return [Diagnosis("record", "ok", name)]


def _disk(database: Path) -> list[Diagnosis]:
    # The folder may not exist yet; then its nearest existing parent counts.
    folder = next(parent for parent in database.resolve().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < 200_000_000:
        remedy = "free some space, or name another file with --db"
        return [Diagnosis("disk", "problem", f"{free / 1e6:.0f} MB free in {folder}", remedy)]
    return [Diagnosis("disk", "ok", f"{free / 1e9:.1f} GB free in {folder}")]


def _registry() -> list[Diagnosis]:
    try:
        registry = read_registry()
    except KwbenchError as failure:
        return [Diagnosis("registry", "problem", str(failure), "correct the file, or name another with --registry")]
    missing: dict[Path, list[str]] = {}
    damaged: dict[Path, list[str]] = {}
    for name, entry in registry.entries.items():
        if entry.checkpoint is None and entry.recipe is None:
            continue
        path, owner = registry.checkpoint_path(name), registry.owner_of(name).path
        if not path.is_file():
            missing.setdefault(owner, []).append(name)
        elif entry.checkpoint is not None and hashlib.sha256(path.read_bytes()).hexdigest() != entry.checkpoint.sha256:
            damaged.setdefault(owner, []).append(name)
    diagnoses = [
        Diagnosis(
            "checkpoints",
            "problem",
            f"{owner}: the checkpoint is not the pinned one for {', '.join(names)}",
            "restore the files, or kwbench train NAME --pin",
        )
        for owner, names in damaged.items()
    ]
    diagnoses += [
        Diagnosis(
            "checkpoints",
            "note",
            f"{owner}: no checkpoint for {', '.join(names)}",
            "kwbench train NAME --pin trains one, kwbench convert NAME --download fetches a published one",
        )
        for owner, names in missing.items()
    ]
    return diagnoses or [Diagnosis("registry", "ok", f"{registry.path}: {len(registry.entries)} models")]
