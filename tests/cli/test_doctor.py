"""The examination of an installation: every problem has a remedy, and no failure of an examination escapes."""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from kwbench.cli import doctor
from kwbench.cli.doctor import Diagnosis, examine
from kwbench.config import registry as registries
from kwbench.record.store import Store

ENTRY = "{architecture: {name: resnet18}, activation: {name: relu}, checkpoint: {file: FILE, sha256: SHA}}"


def diagnoses(folder: Path) -> dict[str, Diagnosis]:
    """The diagnoses for a database in this folder, by subject."""
    return {diagnosis.subject: diagnosis for diagnosis in examine(str(folder / "results.db"))}


@pytest.fixture(autouse=True)
def _empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    starter = tmp_path / "starter.yaml"
    starter.write_text("models: {}\n")
    monkeypatch.setattr(registries, "_starter_path", lambda: starter)


def test_a_healthy_installation_has_no_problems(tmp_path: Path) -> None:
    by_subject = diagnoses(tmp_path)
    assert {diagnosis.level for diagnosis in by_subject.values()} <= {"ok", "note"}
    assert {"python", "torch", "torchvision", "pyautoattack", "device", "sqlite", "disk", "registry"} <= by_subject.keys()
    assert all(diagnosis.observation for diagnosis in by_subject.values())


def test_a_malformed_registry_is_a_problem_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text("models: {}\nmodels: {}\n")
    diagnosis = diagnoses(tmp_path)["registry"]
    assert diagnosis.level == "problem"
    assert "registry.yaml:2:1" in diagnosis.observation
    assert diagnosis.remedy


def test_missing_and_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"weights")
    (tmp_path / "bad").write_bytes(b"other weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    lines = [f"  {name}: {ENTRY.replace('FILE', name).replace('SHA', sha256)}" for name in ("good", "bad", "gone")]
    (tmp_path / "starter.yaml").write_text("\n".join(["models:", lines[2].replace("gone:", "ours:"), ""]))
    (tmp_path / "registry.yaml").write_text("\n".join(["models:", *lines, ""]))
    checkpoints = [one for one in examine(str(tmp_path / "results.db")) if one.subject == "checkpoints"]
    missing = [(note.level, *note.observation.split(": no checkpoint for ")) for note in checkpoints[1:]]
    assert (checkpoints[0].level, checkpoints[0].observation.rpartition("for ")[2]) == ("problem", "bad")
    assert missing == [("note", "registry.yaml", "gone"), ("note", str(tmp_path / "starter.yaml"), "ours")]
    assert all("kwbench train" in diagnosis.remedy for diagnosis in checkpoints)


def test_a_missing_package_is_a_problem_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "foolbox":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    diagnosis = diagnoses(tmp_path)["foolbox"]
    assert (diagnosis.level, diagnosis.observation, diagnosis.remedy) == ("problem", "not installed", "pip install foolbox")


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 5_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    diagnosis = diagnoses(tmp_path)["disk"]
    assert diagnosis.level == "problem"
    assert "5 MB free" in diagnosis.observation


def test_a_file_that_is_not_a_database_is_a_problem(tmp_path: Path) -> None:
    assert diagnoses(tmp_path)["record"].level == "ok"
    assert {one.subject: one for one in examine(f"sqlite:///{tmp_path}/results.db")}["record"].level == "ok"
    (tmp_path / "results.db").write_bytes(b"no database" * 1000)
    diagnosis = diagnoses(tmp_path)["record"]
    assert diagnosis.level == "problem"
    assert "results.db: not a kwbench database" in diagnosis.observation
    (tmp_path / "results.db").unlink()
    Store.open(str(tmp_path / "results.db"), create=True).close()
    assert diagnoses(tmp_path)["record"].level == "ok"
    assert {one.subject: one for one in examine("nonsense://x")}["record"].level == "problem"


def test_a_missing_folder_of_the_database_is_not_a_problem(tmp_path: Path) -> None:
    assert diagnoses(tmp_path / "not" / "yet")["disk"].level == "ok"


def test_an_extension_built_for_another_torch_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from kwbench.torchvision_schemas import import_torchvision

    import_torchvision()
    extension = importlib.import_module("torchvision.extension")
    for loaded, subject_known in ((False, True), (True, False)):
        monkeypatch.setattr(extension, "_has_ops", lambda loaded=loaded: loaded)
        assert ("torchvision's extension" in diagnoses(tmp_path)) is subject_known


@pytest.mark.parametrize(
    "examination", ["_packages", "_torch", "_torchvision", "_device", "_sqlite", "_record", "_disk", "_registry"]
)
def test_a_failing_examination_is_a_problem_of_its_subject(
    examination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no such luck")

    monkeypatch.setattr(doctor, examination, broken)
    diagnosis = diagnoses(tmp_path)[examination.removeprefix("_")]
    assert (diagnosis.level, diagnosis.observation) == ("problem", "OSError: no such luck")
