"""Creating the tables, and bringing databases of earlier schema versions up to date."""

import sqlalchemy as sa

from kwbench.errors import DamagedData
from kwbench.record.database import schema
from kwbench.record.database.statements import insert

# Tables that version 2, 3, 4 or 5 added; version 1 has all others.
_ADDED = [
    schema.findings,
    schema.adversarials,
    schema.experiments,
    schema.arrays,
    schema.evaluation_checksums,
    schema.attack_run_checksums,
    schema.experiment_checksums,
    schema.examples,
    schema.clean_images,
]
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
    """Bring the database to the current schema version; no row changes.

    Raises DamagedData if it has no kwbench tables, or a version that this kwbench does not know.
    """
    version = schema_version(engine)
    if version in _EARLIER:
        with engine.begin() as connection:
            version = _add_tables(connection)
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


def _add_tables(connection: sa.Connection) -> int:
    """Add to a database of an earlier version the tables that it lacks, and return its new version."""
    versions = schema.schema_version
    # The update comes first because it takes the write lock: of two processes, one waits here and then has nothing to do.
    earlier = versions.c.version.in_(_EARLIER)
    updated = connection.execute(sa.update(versions).where(earlier).values(version=schema.SCHEMA_VERSION))
    if updated.rowcount:
        schema.metadata.create_all(connection, _ADDED)
    return int(connection.execute(sa.select(versions.c.version)).scalar_one())
