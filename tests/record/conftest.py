"""The fixture of an empty record on every backend."""

import itertools
from pathlib import Path

import pytest

from support.postgres import Server

_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty record."""
    if request.param == "sqlite":
        return str(tmp_path / "record.db")
    server: Server = request.getfixturevalue("postgres")
    return server.database(f"record{next(_numbers)}")
