"""Attack runs of schema versions before 6, which had a row for each outcome: reading, checking and packing them."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from kwbench.errors import CannotEvaluate
from kwbench.outcome import Status
from kwbench.record.arrays import FIELDS, INTEGERS, MISSING, OutcomeArrays
from kwbench.record.database import schema
from kwbench.record.database.checksums import damaged_run, select_run_checksums
from kwbench.record.database.samples import SampleWriter
from kwbench.record.database.shards import write_shards

_LETTERS: dict[str | None, bytes] = {None: b"", **{status.value: status.value[:1].encode() for status in Status}}
_MODULUS = 1 << 64

# The fields of `Outcome` without images, in their order, after the attack run.
_COLUMNS: list[sa.Column[Any]] = [
    sa.Column(name, sa.Float if name in ("distance", "seconds") else sa.Integer if name in INTEGERS else sa.Text)
    for name in FIELDS
]
_outcomes = sa.Table("outcomes", sa.MetaData(), sa.Column("attack_run", sa.Integer), *_COLUMNS)


def pack_outcomes(connection: sa.Connection) -> None:
    """Pack all outcomes into shards, and delete their rows.

    Raises DamagedData that names an attack run whose rows are not what was written.
    """
    writer_of_samples = SampleWriter(connection, {})
    runs = connection.execute(sa.select(schema.attack_runs.c.id).order_by(schema.attack_runs.c.id)).scalars().all()
    for run in runs:
        rows = connection.execute(
            sa.select(*_COLUMNS).where(_outcomes.c.attack_run == run).order_by(_outcomes.c.index, _outcomes.c.sample)
        ).all()
        recorded = select_run_checksums(connection, [run]).get(run)
        if recorded is not None and recorded[0] != _checksum(rows):
            raise damaged_run(connection, run)
        if not rows:
            continue
        try:
            outcomes = _arrays(rows)
            outcomes.require_possible()
        except (CannotEvaluate, ValueError, TypeError, KeyError, OverflowError):
            raise damaged_run(connection, run) from None
        tally, details = write_shards(connection, run, outcomes, writer_of_samples.write(outcomes))
        if recorded is not None:
            table = schema.attack_run_checksums
            values = {"outcomes": str(details), "tally": str(tally)}
            connection.execute(sa.update(table).where(table.c.attack_run == run).values(values))
    _outcomes.drop(connection)


def _checksum(rows: Sequence[sa.Row[Any]]) -> str:
    """Return the checksum that version 4 introduced: the number of rows, and the sum of a checksum of each."""
    sums = [hashlib.blake2b(ascii(tuple(row)).encode(), digest_size=8).digest() for row in rows]
    return f"{len(rows)} {sum(int.from_bytes(one, 'big') for one in sums) % _MODULUS}"


def _arrays(rows: Sequence[sa.Row[Any]]) -> OutcomeArrays:
    columns: dict[str, Any] = dict(zip(FIELDS, zip(*rows, strict=True), strict=True))
    for name in INTEGERS:
        columns[name] = np.array([MISSING if value is None else value for value in columns[name]], dtype=np.int64)
    for name in ("status", "other_status"):
        columns[name] = np.array([_LETTERS[value] for value in columns[name]], dtype="S1")
    distances = [np.nan if value is None else value for value in columns["distance"]]
    columns |= {
        "sample": np.array(columns["sample"], dtype=np.bytes_),
        "distance": np.array(distances, dtype=np.float64),
        "seconds": np.array(columns["seconds"], dtype=np.float64),
    }
    notes = np.empty(len(rows), dtype=object)
    notes[:] = columns["note"]
    return OutcomeArrays(**columns | {"note": notes})
