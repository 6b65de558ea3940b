"""Digests identify content, and provenance names versions and machine."""

import hashlib
import importlib.metadata
import json
from typing import Any

import pytest

from kwbench.record import provenance
from kwbench.record.provenance import digest, machine, versions


def test_digests_depend_on_content_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    different: list[dict[str, Any]] = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1]}, {}]
    assert len({digest(value) for value in different}) == len(different)
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_digests_are_sha256_over_canonical_json() -> None:
    value = {"b": 1, "a": "é"}
    assert digest(value) == hashlib.sha256(b'{"a":"\\u00e9","b":1}').hexdigest()
    assert json.loads('{"a":"\\u00e9","b":1}') == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_have_no_digest(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": [value]})


def test_versions_name_the_libraries_that_numbers_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = versions()
    assert {"python", "kwbench", "torch", "numpy", "pyautoattack", "foolbox"} <= installed.keys()
    assert installed["torch"] == importlib.metadata.version("torch")
    assert "sqlalchemy" not in installed, "no number depends on the database library"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "version", missing)
    assert versions()["torch"] == "not installed"
    assert machine()["cores"] >= 1
