"""Reading tallies: the database packs an attack run into one row, so that Python need not see every outcome."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.outcome import Status
from kwbench.record.database import schema
from kwbench.record.database.checksums import damaged_run, select_run_checksums, tally_checksum
from kwbench.record.tally import Tally, shares

# The letters w, b, h and v occur only in "wrong", "broken", "held" and "invalid" respectively, once each. Deleting all other
# letters from joined statuses thus leaves one letter per status, with "error" replaced by "!" before.
_FIRST_LETTERS = bytes.maketrans(b"v!", b"ie")
_DELETED = bytes(set(b"abcdefghijklmnopqrstuvwxyz") - set(b"wbhv"))

_Order = tuple[NDArray[np.intp], NDArray[np.int64]]


class TallyReader:
    """Reads tallies, about 2 million outcomes a second and core. Several threads may share one, each with its connection.

    Attack runs on the same samples share one `index` array: comparing it with itself costs nothing.
    """

    def __init__(self, *, checked: bool = True) -> None:
        """`checked`: compare the checksums on record."""
        self._checked = checked
        self._orders: dict[str, _Order] = {}

    def read(self, connection: sa.Connection, attack_runs: Sequence[int]) -> dict[int, Tally]:
        """Return the tallies of at most `IDS_PER_QUERY` attack runs; runs without rows are left out.

        Raises DamagedData if one is not what was written.
        """
        column = schema.outcomes.c
        index = _joined(column.index)
        rows = _grouped(
            connection,
            attack_runs,
            index,
            sa.func.aggregate_strings(column.status, ""),
            sa.func.sum(column.forwards),
            sa.func.sum(column.backwards),
            sa.func.sum(column.seconds),
            sa.func.count(sa.case((column.other_status.is_not(None) | column.surrogate_prediction.is_not(None), 1))),
            sa.func.max(column.selection_draws + column.fresh_draws),
        )
        # Few attack runs have these; the others are spared the cost.
        extra = _grouped(
            connection,
            [row[0] for row in rows if row[6]],
            sa.func.count(column.other_status),
            sa.func.count(sa.case((column.other_status == Status.HELD.value, 1))),
            sa.func.count(column.surrogate_prediction),
            sa.func.count(sa.case((column.surrogate_prediction == column.label, 1))),
        )
        drawn = _grouped(
            connection,
            [row[0] for row in rows if row[7]],
            index,
            _joined(column.selection_correct),
            _joined(column.selection_draws),
            _joined(column.fresh_correct),
            _joined(column.fresh_draws),
        )
        extras = {run: counts for run, *counts in extra}
        draws = {run: self._shares(positions, texts) for run, positions, *texts in drawn}
        checksums = select_run_checksums(connection, attack_runs)
        none = np.empty(0)
        tallies = {}
        for run, positions, statuses, forwards, backwards, seconds, *_ in rows:
            other_rows, other_held, surrogate_rows, surrogate_right = extras.get(run, (0, 0, 0, 0))
            order, sorted_positions = self._order(positions)
            letters = _first_letters(statuses)
            if len(letters) != len(order):
                raise damaged_run(connection, run)
            selection, fresh = draws.get(run, (none, none))
            tallies[run] = Tally(
                index=sorted_positions,
                status=np.frombuffer(letters, dtype="S1")[order],
                selection=selection,
                fresh=fresh,
                forwards=int(forwards),
                backwards=int(backwards),
                seconds=float(seconds),
                other_rows=other_rows,
                other_held=other_held,
                surrogate_rows=surrogate_rows,
                surrogate_right=surrogate_right,
                guarded=run in checksums,
            )
        if self._checked:
            for run, (_, recorded) in checksums.items():
                if run not in tallies or tally_checksum(tallies[run]) != recorded:
                    raise damaged_run(connection, run)
        return tallies

    def _shares(self, positions: str, counts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the shares of right selection draws and of right fresh draws, ordered by position."""
        order, _ = self._order(positions)
        selection_correct, selection_draws, fresh_correct, fresh_draws = (_integers(text)[order] for text in counts)
        return shares(selection_correct, selection_draws), shares(fresh_correct, fresh_draws)

    def _order(self, positions: str) -> _Order:
        """Return the order that sorts the rows, and the sorted positions. Nearly all attack runs share one text."""
        if positions not in self._orders:
            index = _integers(positions)
            order = np.argsort(index, kind="stable")
            # If another thread was faster, its array is the one that tallies share.
            return self._orders.setdefault(positions, (order, index[order]))
        return self._orders[positions]


def _grouped(connection: sa.Connection, runs: Sequence[int], *columns: sa.ColumnElement[Any]) -> list[Any]:
    """Return one row per attack run: its id, then the aggregates."""
    run = schema.outcomes.c.attack_run
    query = sa.select(run, *columns).where(run.in_(runs)).group_by(run)
    return list(connection.execute(query)) if runs else []


def _joined(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    return sa.func.aggregate_strings(sa.cast(column, sa.String), ",")


def _integers(text: str) -> NDArray[np.int64]:
    return np.fromstring(text, dtype=np.int64, sep=",")


def _first_letters(statuses: str) -> bytes:
    """Return the first letters of statuses that are joined without separator."""
    return statuses.encode().replace(b"error", b"!").translate(_FIRST_LETTERS, _DELETED)
