"""The steps between schema versions, as alembic runs them."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from kwbench.errors import DamagedData
from kwbench.record.database import migrations, schema
from kwbench.record.store import Store
from support.damage import former_record

FORMER_VERSIONS = range(1, schema.SCHEMA_VERSION)


def _make_by_steps(url: str, version: int) -> None:
    """Have alembic bring an empty database to a schema version."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent / "revisions"))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, str(version))
    engine.dispose()


def _differences(url: str) -> list[object]:
    """Return what alembic would change in a database for it to have the tables of `schema`."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.schema_revision.name})
        differences = compare_metadata(context, schema.metadata)
    engine.dispose()
    return list(differences)


def _statements(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE tbl_name != 'schema_revision'"))


@pytest.mark.parametrize("version", FORMER_VERSIONS)
def test_steps_make_the_tables_that_kwbench_made_when_it_had_their_version(tmp_path: Path, version: int) -> None:
    _make_by_steps(f"sqlite:///{tmp_path / 'steps.db'}", version)
    assert _statements(tmp_path / "steps.db") == _statements(former_record(version, tmp_path / "former.db"))


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
def test_alembic_finds_no_difference_between_a_migrated_database_and_the_tables(url: str) -> None:
    address = url if "://" in url else f"sqlite:///{url}"
    _make_by_steps(address, 1)
    engine = sa.create_engine(address)
    with engine.begin() as connection:
        # Databases of versions before 7 have a number, and do not know alembic.
        schema.schema_revision.drop(connection)
        connection.execute(sa.insert(schema.schema_version).values(version=1))
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA application_id = {0x6B77626E}")
    Store.open(url).close()
    assert _differences(address) == []
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE samples ADD COLUMN weight INTEGER"))
    assert len(_differences(address)) == 1
    engine.dispose()


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
def test_alembic_finds_no_difference_between_a_new_database_and_the_tables(url: str) -> None:
    Store.open(url, create=True).close()
    address = url if "://" in url else f"sqlite:///{url}"
    assert _differences(address) == []
    engine = sa.create_engine(address)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.schema_revision.name})
        assert context.get_current_heads() == (str(schema.SCHEMA_VERSION),)
        assert connection.execute(sa.select(schema.schema_version)).all() == [(7,)]
    engine.dispose()


def test_two_versions_at_once_are_named(tmp_path: Path) -> None:
    path = former_record(5, tmp_path / "results.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE schema_revision (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO schema_revision VALUES ('4'), ('5')")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(DamagedData, match=r"results\.db: damaged: its schema version cannot be read"):
        Store.open(str(path))
    assert path.read_bytes() == before
