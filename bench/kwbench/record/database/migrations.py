"""Creating the tables, and bringing databases of earlier schema versions up to date."""

import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import sqlalchemy as sa

from kwbench.errors import DamagedData
from kwbench.record.database import schema
from kwbench.record.database.statements import insert

# The lock of programs that create tables or change them: "kwbn".
_CREATION = 0x6B77626E
# The last version that was kept in `schema_version`, where it stays.
_LAST_NUMBER = 7
# Alembic's state is global to the process.
_ALEMBIC = threading.Lock()


def create_tables(connection: sa.Connection) -> None:
    """Create the tables of the current schema version in a database that has none; change nothing in others."""
    _lock(connection)
    if not _has_tables(connection):
        schema.metadata.create_all(connection)
        insert(connection, schema.schema_version, [{"version": _LAST_NUMBER}])
        insert(connection, schema.schema_revision, [{"version_num": str(schema.SCHEMA_VERSION)}])


def upgrade(engine: sa.Engine) -> None:
    """Bring the database to the current schema version, in one transaction; nothing that is on record changes.

    Raises DamagedData if it has no kwbench tables, or a version that this kwbench does not know.
    """
    version = schema_version(engine)
    if _is_earlier(version):
        # The transaction has the write lock from the start: of two processes, one waits here and then has nothing to do.
        with engine.execution_options(writes=True).begin() as connection:
            _lock(connection)
            free = _free_pages(connection)
            version = _upgrade(connection)
            left_space = _free_pages(connection) > free
        if left_space:
            _shrink(engine)
    if version != schema.SCHEMA_VERSION:
        newer = version is not None and version > schema.SCHEMA_VERSION
        remedy = "update kwbench" if newer else "use another file with --db"
        raise DamagedData(f"schema version {version}, this kwbench reads {schema.SCHEMA_VERSION}; {remedy}")


def schema_version(engine: sa.Engine) -> int | None:
    """Return the schema version of a database; None if it states none. Raises DamagedData if it has no kwbench tables."""
    with engine.connect() as connection:
        if not _has_tables(connection):
            raise DamagedData("not a kwbench database, its tables are missing")
        return _version(connection)


def _has_tables(connection: sa.Connection) -> bool:
    return sa.inspect(connection).has_table(schema.schema_version.name)


def _version(connection: sa.Connection) -> int | None:
    if sa.inspect(connection).has_table(schema.schema_revision.name):
        text = connection.execute(sa.select(schema.schema_revision.c.version_num)).scalar()
        return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 10 else None
    version = connection.execute(sa.select(schema.schema_version.c.version)).scalar()
    return version if isinstance(version, int) else None


def _is_earlier(version: int | None) -> bool:
    return version is not None and 1 <= version < schema.SCHEMA_VERSION


def _lock(connection: sa.Connection) -> None:
    """Make other programs that create tables or change them wait until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION)))


def _upgrade(connection: sa.Connection) -> int | None:
    """Run the steps from the version of a database to the current one, in its transaction, and return its new version."""
    version = _version(connection)
    if not _is_earlier(version):
        return version
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    # A per cent sign would begin a reference.
    config.set_main_option("script_location", str(Path(__file__).parent / "revisions").replace("%", "%%"))
    try:
        with _ALEMBIC:
            if not sa.inspect(connection).has_table(schema.schema_revision.name):
                command.stamp(config, str(version))
            command.upgrade(config, "head")
    except CommandError as failure:
        raise DamagedData(f"damaged: its schema version cannot be read ({failure})") from None
    return _version(connection)


def _free_pages(connection: sa.Connection) -> int:
    """Return the number of pages of a SQLite file that hold nothing; 0 for other databases, which look after themselves."""
    return int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()) if connection.dialect.name == "sqlite" else 0


def _shrink(engine: sa.Engine) -> None:
    """Give the space of deleted rows back; without it, the file is only larger than it need be."""
    with suppress(sqlite3.OperationalError), closing(engine.raw_connection()) as connection:
        connection.cursor().execute("VACUUM")  # SQLAlchemy would begin a transaction, in which this is not allowed
