"""Creating the tables, and bringing databases of earlier schema versions up to date."""

import sqlite3
from contextlib import closing, suppress

import sqlalchemy as sa

from kwbench.errors import DamagedData
from kwbench.record.database import schema
from kwbench.record.database.former import pack_outcomes
from kwbench.record.database.statements import insert

# Tables whose rows referred to single outcomes before version 6.
_OF_OUTCOMES = (schema.adversarials, schema.examples)
# The lock of programs that create tables: "kwbn".
_CREATION = 0x6B77626E
_EARLIER = range(1, schema.SCHEMA_VERSION)


def create_tables(connection: sa.Connection) -> None:
    """Create the tables that are missing, and note the schema version."""
    if connection.dialect.name == "postgresql":
        # Of two programs that create the same tables at once, one would fail.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION)))
    schema.metadata.create_all(connection)
    insert(connection, schema.schema_version, [{"version": schema.SCHEMA_VERSION}])


def upgrade(engine: sa.Engine) -> None:
    """Bring the database to the current schema version, in one transaction; nothing that is on record changes.

    Raises DamagedData if it has no kwbench tables, or a version that this kwbench does not know.
    """
    version = schema_version(engine)
    if version in _EARLIER:
        with engine.begin() as connection:
            version = _upgrade(connection)
        if engine.dialect.name == "sqlite":
            _shrink(engine)
    if version != schema.SCHEMA_VERSION:
        newer = isinstance(version, int) and version > schema.SCHEMA_VERSION
        remedy = "update kwbench" if newer else "use another file with --db"
        raise DamagedData(f"schema version {version}, this kwbench reads {schema.SCHEMA_VERSION}; {remedy}")


def schema_version(engine: sa.Engine) -> int | None:
    """Return the schema version of a database. Raises DamagedData if it has no kwbench tables."""
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(schema.schema_version.name):
            raise DamagedData("not a kwbench database, its tables are missing")
        return connection.execute(sa.select(schema.schema_version.c.version)).scalar()


def _upgrade(connection: sa.Connection) -> int:
    """Bring a database of an earlier version up to date, and return its new version.

    Versions 2, 3, 4 and 5 added tables. Version 6 packs outcomes.
    """
    versions = schema.schema_version
    # The update comes first because it takes the write lock: of two processes, one waits here and then has nothing to do.
    earlier = versions.c.version.in_(_EARLIER)
    updated = connection.execute(sa.update(versions).where(earlier).values(version=schema.SCHEMA_VERSION))
    if updated.rowcount:
        kept = [table for table in _OF_OUTCOMES if sa.inspect(connection).has_table(table.name)]
        for table in kept:
            connection.exec_driver_sql(f"CREATE TEMPORARY TABLE kept_{table.name} AS SELECT * FROM {table.name}")  # noqa: S608
            table.drop(connection)
        schema.metadata.create_all(connection)
        pack_outcomes(connection)
        for table in kept:
            names = ", ".join(f'"{column.name}"' for column in table.columns)
            connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) SELECT {names} FROM kept_{table.name}")  # noqa: S608
            connection.exec_driver_sql(f"DROP TABLE kept_{table.name}")
    return int(connection.execute(sa.select(versions.c.version)).scalar_one())


def _shrink(engine: sa.Engine) -> None:
    """Give the space of deleted rows back; without it, the file is only larger than it need be."""
    with suppress(sqlite3.OperationalError), closing(engine.raw_connection()) as connection:
        connection.cursor().execute("VACUUM")  # SQLAlchemy would begin a transaction, in which this is not allowed
