"""Checksums: they show whether what is on record is what was written.

Each is written in the transaction that changes what it is about, so that a kill at any moment leaves both or neither. Every
read that yields a number compares them, and raises DamagedData where they differ.

- An evaluation has one of its own fields and its attacks, and one of its findings.
- An attack run has one of its tally, from which summaries derive their numbers, and one of all fields of its outcomes.
- Packed arrays carry their own; see `statements.pack_array`.

They guard against damage, not against forgery.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from kwbench.errors import DamagedData
from kwbench.outcome import Outcome
from kwbench.record.database import schema
from kwbench.record.tally import Tally

REMEDY = "restore the database from a backup, or evaluate anew with another --db"

# Sums of outcomes' checksums are taken modulo this.
_MODULUS = 1 << 64


def checksum(*values: object) -> str:
    """Return the SHA-256 of values whose `repr` determines them: texts, integers, floats, None, and sequences of these."""
    return hashlib.sha256(ascii(values).encode()).hexdigest()


def without_command(provenance: str) -> str:
    """Return the JSON text of a provenance without the command, whose folders are removed before a record is published."""
    values = json.loads(provenance)
    return json.dumps({name: value for name, value in values.items() if name != "command"}, sort_keys=True)


def tally_checksum(tally: Tally) -> str:
    """Return the checksum of a tally. Times are rounded, since databases may add them up in any order."""
    sha = hashlib.sha256()
    for array in (tally.index, tally.status, tally.selection, tally.fresh):
        sha.update(array.tobytes() + b"/")
    counts = (tally.forwards, tally.backwards, round(1000 * tally.seconds))
    sha.update(ascii((*counts, tally.other_rows, tally.other_held, tally.surrogate_rows, tally.surrogate_right)).encode())
    return sha.hexdigest()


class OutcomesChecksum:
    """The checksum of outcomes in any order: their number, and the sum of a checksum of each."""

    def __init__(self, text: str = "0 0") -> None:
        """Raises DamagedData for a text that is no such checksum."""
        try:
            self._count, self._sum = map(int, text.split())
        except ValueError:
            raise DamagedData(f"a checksum of outcomes is damaged; {REMEDY}") from None

    def add(self, outcomes: Iterable[Outcome]) -> "OutcomesChecksum":
        """Return the checksum with these outcomes added."""
        return self._changed(outcomes, 1)

    def remove(self, outcomes: Iterable[Outcome]) -> "OutcomesChecksum":
        """Return the checksum without these outcomes."""
        return self._changed(outcomes, -1)

    def __str__(self) -> str:
        return f"{self._count} {self._sum}"

    def _changed(self, outcomes: Iterable[Outcome], sign: int) -> "OutcomesChecksum":
        sums = [_outcome_checksum(outcome) for outcome in outcomes]
        return OutcomesChecksum(f"{self._count + sign * len(sums)} {(self._sum + sign * sum(sums)) % _MODULUS}")


def _outcome_checksum(outcome: Outcome) -> int:
    fields = (
        str(outcome.sample),
        *map(_integer, (outcome.index, outcome.label)),
        str(outcome.status),
        *map(_integer, (outcome.clean_prediction, outcome.prediction)),
        None if outcome.distance is None else float(outcome.distance),
        None if outcome.other_status is None else str(outcome.other_status),
        *map(_integer, (outcome.surrogate_prediction, outcome.selection_correct, outcome.selection_draws)),
        *map(_integer, (outcome.fresh_correct, outcome.fresh_draws, outcome.forwards, outcome.backwards)),
        float(outcome.seconds),
        str(outcome.note),
    )
    return int.from_bytes(hashlib.blake2b(ascii(fields).encode(), digest_size=8).digest(), "big")


def _integer(value: int | None) -> int | None:
    return None if value is None else int(value)


def select_run_checksums(connection: sa.Connection, attack_runs: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return the checksums of attack runs, of their outcomes and of their tally; runs without are left out."""
    table = schema.attack_run_checksums
    return {
        run: (outcomes, tally)
        for run, outcomes, tally in connection.execute(sa.select(table).where(table.c.attack_run.in_(attack_runs)))
    }


def require_outcomes(connection: sa.Connection, attack_run: int, outcomes: Sequence[Outcome]) -> None:
    """Raise DamagedData unless these are the outcomes that were written for an attack run."""
    recorded = select_run_checksums(connection, [attack_run]).get(attack_run)
    if recorded is not None and recorded[0] != str(OutcomesChecksum().add(outcomes)):
        raise damaged_run(connection, attack_run)


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
