"""Digests and versions: what makes two runs the same run."""

import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kwbench import provenance
from kwbench.provenance import code_digest, digest, machine, versions

SOURCE = Path(provenance.__file__).parent


def code_digest_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(provenance, "__file__", str(root / "provenance.py"))
    code_digest.cache_clear()
    try:
        return code_digest()
    finally:
        monkeypatch.undo()
        code_digest.cache_clear()


def test_digests_depend_on_content_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    different: list[dict[str, Any]] = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}, {}]
    assert len({digest(each) for each in different}) == len(different)
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_digests_are_sha256_over_canonical_json() -> None:
    value = {"b": 1, "a": "é"}
    assert digest(value) == hashlib.sha256(b'{"a":"\\u00e9","b":1}').hexdigest()
    assert json.loads('{"a":"\\u00e9","b":1}') == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_no_numbers_have_no_digest(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": [value]})


def test_versions_name_what_numbers_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert {"python", "kwbench", "torch", "numpy", "pyautoattack", "foolbox"} <= found.keys()
    assert found["torch"] == importlib.metadata.version("torch")
    assert "sqlalchemy" not in found, "a new database library must not make every row on record useless"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "version", missing)
    assert versions()["torch"] == "not installed"
    assert machine()["cores"] >= 1


def test_code_that_can_change_an_outcome_changes_the_digest_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "kwbench"
    shutil.copytree(SOURCE, root, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_digest_of(root, monkeypatch)
    assert before == code_digest_of(SOURCE, monkeypatch)
    for file in ("judge.py", "attacks/pgd.py", "activations/kwta.py", "data.py", "geometry.py", "gradients.py", "model.py"):
        source = (root / file).read_text()
        (root / file).write_text(source + "# changed\n")
        assert code_digest_of(root, monkeypatch) != before, file
        (root / file).write_text(source)
    (root / "attacks" / "new.py").write_text("")
    assert code_digest_of(root, monkeypatch) != before
    (root / "attacks" / "new.py").unlink()
    (root / "judge.py").rename(root / "judgement.py")
    assert code_digest_of(root, monkeypatch) != before


@pytest.mark.parametrize(
    "file", ["cli.py", "progress.py", "standing.py", "store.py", "doctor.py", "training/loop.py", "wording.py"]
)
def test_code_that_only_shows_or_keeps_outcomes_does_not(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "kwbench"
    shutil.copytree(SOURCE, root, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_digest_of(root, monkeypatch)
    (root / file).write_text((root / file).read_text() + "# changed\n")
    assert code_digest_of(root, monkeypatch) == before
