"""The drivers at work: programs that evaluate into this database now, and how far they are.

The table is no part of the record: it is made when first needed, and rows go when their program ends. So it has no schema
version, no checksums, and is neither exported nor merged.
"""

from dataclasses import asdict, dataclass, fields

import sqlalchemy as sa

from kwbench.record.database.statements import upsert

# Seconds after which rows of programs that were killed are removed.
_KEPT = 7 * 24 * 3600
# The lock of programs that create the table: "kwbd".
_CREATION = 0x6B776264


@dataclass(frozen=True)
class Driver:
    """A program at work.

    Attributes:
        id: unique.
        host: the name of its machine.
        process: its process id there.
        command: its command line.
        models: the number of models that it evaluates.
        position: the place among them of the one that it evaluates, from 1 on.
        model: the name of that model.
        label: the attack that it runs.
        done: samples that this attack has done, of `samples`.
        samples: samples that this attack sees.
        done_in_all: rows on record, of `rows_in_all`.
        rows_in_all: rows of the whole evaluation of this model, at most.
        seconds: seconds since it began.
        silent: seconds since it last wrote this, by the clock of the database; 0 when it is written.
    """

    id: str
    host: str
    process: int
    command: str
    models: int
    position: int
    model: str
    label: str
    done: int
    samples: int
    done_in_all: int
    rows_in_all: int
    seconds: float
    silent: float = 0.0


_table = sa.Table(
    "drivers",
    sa.MetaData(),
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("process", sa.Integer, nullable=False),
    sa.Column("command", sa.Text, nullable=False),
    sa.Column("models", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("samples", sa.Integer, nullable=False),
    sa.Column("done_in_all", sa.Integer, nullable=False),
    sa.Column("rows_in_all", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    # Seconds since 1970 by the clock of the database, since those of several machines differ.
    sa.Column("seen", sa.Float, nullable=False),
)


def write_driver(connection: sa.Connection, driver: Driver) -> None:
    """Put a driver into the table, or what it does now."""
    if not sa.inspect(connection).has_table(_table.name):
        if connection.dialect.name == "postgresql":
            # Of two programs that create the same table at once, one would fail.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION)))
        _table.create(connection, checkfirst=True)
    now = _now(connection)
    row = asdict(driver)
    del row["silent"]
    upsert(connection, _table, row | {"seen": now})
    connection.execute(sa.delete(_table).where(_table.c.seen < now - _KEPT))


def delete_driver(connection: sa.Connection, identity: str) -> None:
    """Remove a driver that has ended."""
    if sa.inspect(connection).has_table(_table.name):
        connection.execute(sa.delete(_table).where(_table.c.id == identity))


def select_drivers(connection: sa.Connection) -> list[Driver]:
    """Return the drivers, those that began first first."""
    if not sa.inspect(connection).has_table(_table.name):
        return []
    now = _now(connection)
    names = [field.name for field in fields(Driver) if field.name != "silent"]
    rows = connection.execute(sa.select(_table)).mappings().all()
    drivers = [Driver(**{name: row[name] for name in names}, silent=max(0.0, now - row["seen"])) for row in rows]
    return sorted(drivers, key=lambda driver: (-driver.seconds - driver.silent, driver.id))


def _now(connection: sa.Connection) -> float:
    if connection.dialect.name == "postgresql":
        return float(connection.execute(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).scalar_one())
    return float(connection.execute(sa.select((sa.func.julianday("now") - 2440587.5) * 86400.0)).scalar_one())
