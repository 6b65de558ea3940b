"""Changing records behind their back: outcomes as no part of kwbench would change them, and records of former versions."""

import lzma
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.record.arrays import FIELDS, OutcomeArrays, concatenated
from kwbench.record.database import schema
from kwbench.record.database.samples import SampleReader, SampleWriter
from kwbench.record.database.shards import select_arrays, select_shards, write_shards
from kwbench.record.store import Store

FORMER = Path(__file__).resolve().parents[1] / "record/former"


def former_record(version: int, path: Path) -> Path:
    """Write a record that kwbench made when its schema had this version, and return its path."""
    path.write_bytes(lzma.decompress((FORMER / f"version-{version}.db.xz").read_bytes()))
    return path


def copy_record(path: Path, url: str) -> None:
    """Copy a SQLite record of any version into an empty database, table by table."""
    source, target = (sa.create_engine(address) for address in (f"sqlite:///{path}", url))
    tables = sa.MetaData()
    tables.reflect(source)
    for table in tables.tables.values():
        for column in table.columns:
            if isinstance(column.type, sa.BLOB):
                column.type = sa.LargeBinary()
    with source.connect() as reader, target.begin() as writer:
        tables.create_all(writer)
        for table in tables.sorted_tables:
            if rows := [row._asdict() for row in reader.execute(sa.select(table))]:
                writer.execute(sa.insert(table), rows)
    for engine in (source, target):
        engine.dispose()


def change_outcomes(
    store: Store, change: Callable[[OutcomeArrays], OutcomeArrays], *attack_runs: int, guarded: bool = True
) -> None:
    """Replace the outcomes of attack runs, by default of all; their checksums stay those of before, or go if not `guarded`."""
    with store._writing() as connection:
        runs = attack_runs or connection.execute(sa.select(schema.attack_runs.c.id)).scalars().all()
        for run, shards in select_shards(connection, SampleReader(), runs).items():
            before = concatenated([select_arrays(connection, run, shard)[0] for shard in shards])
            connection.execute(sa.delete(schema.shards).where(schema.shards.c.attack_run == run))
            if len(after := change(before)):
                write_shards(connection, run, after, SampleWriter(connection, {}).write(after))
        if not guarded:
            connection.execute(sa.delete(schema.attack_run_checksums))


def change_outcomes_of_file(
    path: Path, change: Callable[[OutcomeArrays], OutcomeArrays], *attack_runs: int, guarded: bool = True
) -> None:
    """Do the same to a SQLite file."""
    with closing(Store.open(str(path))) as store:
        change_outcomes(store, change, *attack_runs, guarded=guarded)


def without(rows: Callable[[OutcomeArrays], NDArray[np.bool_]]) -> Callable[[OutcomeArrays], OutcomeArrays]:
    """Return the change that removes the outcomes where a mask is True."""
    return lambda outcomes: outcomes.take(~rows(outcomes))


def with_values(
    rows: Callable[[OutcomeArrays], NDArray[np.bool_]] | None = None, **values: object
) -> Callable[[OutcomeArrays], OutcomeArrays]:
    """Return the change that gives fields a value, by default in all outcomes, otherwise where a mask is True."""

    def change(outcomes: OutcomeArrays) -> OutcomeArrays:
        chosen = np.ones(len(outcomes), dtype=np.bool_) if rows is None else rows(outcomes)
        columns = {name: getattr(outcomes, name).copy() for name in FIELDS}
        for name, value in values.items():
            columns[name][chosen] = value
        return OutcomeArrays(**columns)

    return change
