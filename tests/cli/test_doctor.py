"""What the doctor finds, and that it never falls ill itself."""

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


def found(folder: Path) -> dict[str, Diagnosis]:
    return {finding.subject: finding for finding in examine(str(folder / "results.db"))}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    starter = tmp_path / "starter.yaml"
    starter.write_text("models: {}\n")
    monkeypatch.setattr(registries, "_starter_path", lambda: starter)


def test_a_healthy_installation_has_no_problems(tmp_path: Path) -> None:
    findings = found(tmp_path)
    assert {finding.level for finding in findings.values()} <= {"ok", "note"}
    assert {"python", "torch", "torchvision", "pyautoattack", "device", "sqlite", "disk", "registry"} <= findings.keys()
    assert all(finding.found for finding in findings.values())


def test_a_malformed_registry_is_a_problem_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "registry.yaml").write_text("models: {}\nmodels: {}\n")
    finding = found(tmp_path)["registry"]
    assert finding.level == "problem"
    assert "registry.yaml:2:1" in finding.found
    assert finding.remedy


def test_missing_and_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"weights")
    (tmp_path / "bad").write_bytes(b"other weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    lines = [f"  {name}: {ENTRY.replace('FILE', name).replace('SHA', sha256)}" for name in ("good", "bad", "gone")]
    (tmp_path / "starter.yaml").write_text("\n".join(["models:", lines[2].replace("gone:", "ours:"), ""]))
    (tmp_path / "registry.yaml").write_text("\n".join(["models:", *lines, ""]))
    checkpoints = [finding for finding in examine(str(tmp_path / "results.db")) if finding.subject == "checkpoints"]
    said = [(finding.level, *finding.found.split(": no checkpoint for ")) for finding in checkpoints[1:]]
    assert (checkpoints[0].level, checkpoints[0].found.rpartition("for ")[2]) == ("problem", "bad")
    assert said == [("note", "registry.yaml", "gone"), ("note", str(tmp_path / "starter.yaml"), "ours")]
    assert all("kwbench train" in finding.remedy for finding in checkpoints)


def test_a_missing_package_is_a_problem_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "foolbox":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    finding = found(tmp_path)["foolbox"]
    assert (finding.level, finding.found, finding.remedy) == ("problem", "not installed", "pip install foolbox")


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 5_000_000

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Full)
    finding = found(tmp_path)["disk"]
    assert finding.level == "problem"
    assert "5 MB free" in finding.found


def test_what_is_no_record_is_a_problem(tmp_path: Path) -> None:
    assert found(tmp_path)["record"].level == "ok"
    assert {each.subject: each for each in examine(f"sqlite:///{tmp_path}/results.db")}["record"].level == "ok"
    (tmp_path / "results.db").write_bytes(b"no database" * 1000)
    finding = found(tmp_path)["record"]
    assert finding.level == "problem"
    assert "results.db: not a kwbench database" in finding.found
    (tmp_path / "results.db").unlink()
    Store.open(str(tmp_path / "results.db"), create=True).close()
    assert found(tmp_path)["record"].level == "ok"
    assert {each.subject: each for each in examine("nonsense://x")}["record"].level == "problem"


def test_a_database_in_a_folder_yet_to_be_made_is_no_problem(tmp_path: Path) -> None:
    assert found(tmp_path / "not" / "yet")["disk"].level == "ok"


def test_an_extension_built_for_another_torch_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from kwbench.torchvision_schemas import import_torchvision

    import_torchvision()
    extension = importlib.import_module("torchvision.extension")
    for loaded, subject_known in ((False, True), (True, False)):
        monkeypatch.setattr(extension, "_has_ops", lambda loaded=loaded: loaded)
        assert ("torchvision's extension" in found(tmp_path)) is subject_known


@pytest.mark.parametrize("look", ["_packages", "_torch", "_torchvision", "_device", "_sqlite", "_record", "_disk", "_registry"])
def test_whatever_breaks_becomes_a_problem_under_its_own_name(
    look: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no such luck")

    monkeypatch.setattr(doctor, look, broken)
    finding = found(tmp_path)[look.removeprefix("_")]
    assert (finding.level, finding.found) == ("problem", "OSError: no such luck")
