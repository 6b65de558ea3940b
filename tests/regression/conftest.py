"""Fixtures: a new database, and a path for a baseline."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kwbench.record.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return tmp_path / "baseline.json"
