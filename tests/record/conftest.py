"""Fixtures of empty records: on every backend, a SQLite file, a PostgreSQL server and memory."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwbench.record.store import Store
from support.postgres import Server

_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgres", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty record."""
    if request.param == "memory":
        return "sqlite://"
    if request.param == "sqlite":
        return str(tmp_path / "record.db")
    server: Server = request.getfixturevalue("postgres")
    return server.database(f"record{next(_numbers)}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty record on SQLite."""
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()
