"""The wheel holds what a user needs, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STARTER = "kwbench/starter"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the wheel that hatchling builds of this folder."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_file_of_the_package_is_in_the_wheel(names: set[str]) -> None:
    package = ROOT / "bench" / "kwbench"
    files = {f"kwbench/{path.relative_to(package).as_posix()}" for path in package.rglob("*") if path.is_file()}
    wanted = {name for name in files if "__pycache__" not in name and not name.startswith(STARTER)}
    assert {"kwbench/py.typed", "kwbench/config/suites/strong.yaml"} < wanted
    assert wanted - names == set()


def test_the_starter_models_and_the_licence_are_in_the_wheel(names: set[str]) -> None:
    weights = {f"{STARTER}/models/digits/{path.name}" for path in (ROOT / "models" / "digits").glob("*.safetensors")}
    assert len(weights) > 5
    assert weights | {f"{STARTER}/registry.yaml"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_tests_records_and_caches_are_not_in_the_wheel(names: set[str]) -> None:
    others = [name for name in names if not name.startswith(("kwbench/", "kwbench-"))]
    assert others == []
    assert [name for name in names if name.endswith((".db", ".pyc")) or "/tests/" in name or "test_" in name] == []
