"""Checksums: they show whether what is on record is what was written.

Each is written in the transaction that changes what it is about, so that a kill at any moment leaves both or neither. Every
read that yields a number compares them, and raises DamagedData where they differ.

- An evaluation has one of its own fields and its attacks, and one of its findings.
- An attack run has one of its tally, from which summaries derive their numbers, and one of all other details; see `shards`.
- Packed arrays carry their own; see `statements.pack_array`.

They guard against damage, not against forgery.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from kwbench.errors import DamagedData
from kwbench.record.database import schema

REMEDY = "restore the database from a backup, or evaluate anew with another --db"


def checksum(*values: object) -> str:
    """Return the SHA-256 of values whose `repr` determines them: texts, integers, floats, None, and sequences of these."""
    return hashlib.sha256(ascii(values).encode()).hexdigest()


def without_command(provenance: str) -> str:
    """Return the JSON text of a provenance without the command, whose folders are removed before a record is published."""
    values = json.loads(provenance)
    return json.dumps({name: value for name, value in values.items() if name != "command"}, sort_keys=True)


def select_run_checksums(connection: sa.Connection, attack_runs: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return the checksums of attack runs, of their details and of their tallies; runs without are left out."""
    table = schema.attack_run_checksums
    return {
        run: (outcomes, tally)
        for run, outcomes, tally in connection.execute(sa.select(table).where(table.c.attack_run.in_(attack_runs)))
    }


def damaged_run(connection: sa.Connection, attack_run: int) -> DamagedData:
    """Return the error about an attack run whose outcomes are not those that were written."""
    evaluations, runs, members = schema.evaluations.c, schema.attack_runs.c, schema.members.c
    label = connection.execute(sa.select(runs.label).where(runs.id == attack_run)).scalar()
    query = sa.select(evaluations.model).join(schema.members, members.evaluation == evaluations.id)
    model = connection.execute(query.where(members.attack_run == attack_run).order_by(members.evaluation)).scalar()
    return DamagedData(
        f"damaged: the outcomes of attack {label!r} on {model!r} (attack run {attack_run}) are not those that were written; "
        f"{REMEDY}"
    )


def next_position(connection: sa.Connection, column: sa.Column[Any], owner: int) -> dict[str, Any]:
    """Return the columns of a position larger than all in a column. The transaction must hold the lock of `statements.lock`."""
    position = 1 + int(connection.execute(sa.select(sa.func.max(column))).scalar() or 0)
    return {"position": position, "position_checksum": checksum(owner, position)}


def require_position(owner: int, position: int | None, recorded: str | None) -> None:
    """Raise DamagedData unless the position, if there is one, is the one that was written."""
    if position is not None and recorded != checksum(owner, position):
        raise DamagedData("its place in the order of writing is not the one that was written")
