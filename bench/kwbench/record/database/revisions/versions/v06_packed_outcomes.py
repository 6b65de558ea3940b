"""Outcomes are packed, some thousands in a row; they had a row each."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from alembic import op

from kwbench.errors import CannotEvaluate
from kwbench.outcome import Status
from kwbench.record.arrays import FIELDS, INTEGERS, MISSING, OutcomeArrays
from kwbench.record.database import schema
from kwbench.record.database.checksums import damaged_run, select_run_checksums
from kwbench.record.database.samples import SampleWriter
from kwbench.record.database.shards import write_shards

revision = "6"
down_revision = "5"

_LETTERS: dict[str | None, bytes] = {None: b"", **{status.value: status.value[:1].encode() for status in Status}}
_MODULUS = 1 << 64

# The fields of `Outcome` without images, in their order, after the attack run.
_COLUMNS: list[sa.Column[Any]] = [
    sa.Column(name, sa.Float if name in ("distance", "seconds") else sa.Integer if name in INTEGERS else sa.Text)
    for name in FIELDS
]
_outcomes = sa.Table("outcomes", sa.MetaData(), sa.Column("attack_run", sa.Integer), *_COLUMNS)


def upgrade() -> None:
    """Pack all outcomes, and delete their rows. Raises DamagedData that names an attack run whose rows were not written so."""
    op.create_table(
        "samples",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sample", sa.String(32), nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("label", sa.Integer, nullable=False),
        sa.UniqueConstraint("sample", "index", "label"),
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("attack_run", sa.Integer, sa.ForeignKey("attack_runs.id"), nullable=False, index=True),
        sa.Column("outcomes", sa.Integer, nullable=False),
        sa.Column("samples", sa.LargeBinary, nullable=False),
        sa.Column("tally", sa.LargeBinary, nullable=False),
        sa.Column("details", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("outcomes > 0"),
    )
    _replace_table(
        "adversarials",
        sa.Column("attack_run", sa.Integer, sa.ForeignKey("attack_runs.id"), primary_key=True),
        sa.Column("sample", sa.String(32), primary_key=True),
        sa.Column("channels", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("image", sa.LargeBinary, nullable=False),
    )
    _replace_table(
        "examples",
        sa.Column("attack_run", sa.Integer, sa.ForeignKey("attack_runs.id"), primary_key=True),
        sa.Column("sample", sa.String(32), primary_key=True),
        sa.Column("scale", sa.Float),
        sa.Column("image", sa.LargeBinary, nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
    )
    _pack_outcomes(op.get_bind())
    op.drop_table("outcomes")


def _replace_table(name: str, *columns: sa.Column[Any]) -> None:
    """Give a table that referred to single outcomes these columns, and keep its rows."""
    names = ", ".join(f'"{column.name}"' for column in columns)
    op.execute(f"CREATE TEMPORARY TABLE kept AS SELECT {names} FROM {name}")  # noqa: S608
    op.drop_table(name)
    op.create_table(name, *columns)
    op.execute(f"INSERT INTO {name} ({names}) SELECT {names} FROM kept")  # noqa: S608
    op.execute("DROP TABLE kept")


def _pack_outcomes(connection: sa.Connection) -> None:
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
