"""Queries on experiments and the arrays that they measured."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import sqlalchemy as sa

from kwbench.errors import DamagedData
from kwbench.record.database import schema
from kwbench.record.database.checksums import REMEDY, checksum, next_position, require_position, without_command
from kwbench.record.database.statements import insert, lock, pack_array, to_json, unpack_array, upsert
from kwbench.record.measurement import Array, Measurement


def insert_measurement(connection: sa.Connection, measurement: Measurement) -> None:
    """Insert a measurement if it is missing, and note that it was asked for now."""
    lock(connection, schema.schema_revision)
    asked = datetime.now(UTC).isoformat(timespec="microseconds")
    table = schema.experiments
    row = {
        "identity": measurement.identity,
        "experiment": measurement.experiment,
        "model": measurement.model,
        "dataset": measurement.dataset,
        "spec": to_json(measurement.spec),
        "provenance": to_json(measurement.provenance),
        "asked": asked,
    }
    same = table.c.identity == measurement.identity
    is_new = connection.execute(sa.select(table.c.id).where(same)).scalar() is None
    insert(connection, table, [row])
    connection.execute(sa.update(table).where(same).values(asked=asked))
    experiment = connection.execute(sa.select(table.c.id).where(same)).scalar_one()
    arrays = [
        {
            "experiment": experiment,
            "name": name,
            "shape": json.dumps(array.shape),
            "numbers": pack_array(array, "<f8", name),
        }
        for name, array in measurement.arrays.items()
    ]
    insert(connection, schema.arrays, arrays)
    checksums = schema.experiment_checksums
    state = {"experiment": experiment, **next_position(connection, checksums.c.position, experiment)}
    if is_new:
        (recorded,) = connection.execute(sa.select(table).where(same))
        state["checksum"] = _checksum(recorded, _select_arrays(connection, same)[experiment] if arrays else [])
    upsert(connection, checksums, state)


def select_measurements(
    connection: sa.Connection, identity: str | None = None, experiment: str | None = None
) -> list[Measurement]:
    """Return all measurements, the newest last, or those with this identity or of this experiment.

    Raises DamagedData for damaged arrays.
    """
    table, checksums = schema.experiments, schema.experiment_checksums
    chosen = sa.true() if identity is None else table.c.identity == identity
    chosen = chosen if experiment is None else sa.and_(chosen, table.c.experiment == experiment)
    arrays = _select_arrays(connection, chosen)
    query = (
        sa.select(table, checksums.c.position, checksums.c.position_checksum, checksums.c.checksum)
        .outerjoin(checksums)
        .where(chosen)
    )
    measurements = []
    rows = sorted(connection.execute(query), key=_recency)
    for row in rows:
        own = arrays.pop(row.id, [])
        try:
            require_position(row.id, row.position, row.position_checksum)
            unpacked = {array.name: _array(array.name, array.shape, array.numbers) for array in own}
            if row.checksum is not None and row.checksum != _checksum(row, own):
                raise DamagedData("its fields or its arrays are not those that were written")
            measurements.append(
                Measurement(
                    identity=row.identity,
                    experiment=row.experiment,
                    model=row.model,
                    dataset=row.dataset,
                    spec=json.loads(row.spec),
                    provenance=json.loads(row.provenance),
                    arrays=unpacked,
                )
            )
        except (DamagedData, ValueError, TypeError, AttributeError, RecursionError) as failure:
            raise DamagedData(f"damaged: experiment {row.id} ({row.experiment}, {row.model}): {failure}; {REMEDY}") from None
    known = {row.id for row in rows}
    lost = [number for number in connection.execute(sa.select(checksums.c.experiment)).scalars() if number not in known]
    if identity is None and experiment is None and lost:
        raise DamagedData(f"damaged: experiment {lost[0]}: its row is missing; {REMEDY}")
    return measurements


def _select_arrays(connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> dict[int, list[sa.Row[Any]]]:
    """Return the rows of the chosen experiments' arrays, by experiment."""
    table, arrays = schema.experiments, schema.arrays
    query = sa.select(arrays).join(table, table.c.id == arrays.c.experiment).where(chosen)
    by_experiment: dict[int, list[sa.Row[Any]]] = {}
    for row in connection.execute(query.order_by(arrays.c.experiment, arrays.c.name)):
        by_experiment.setdefault(row.experiment, []).append(row)
    return by_experiment


def _recency(row: sa.Row[Any]) -> tuple[int, str, int]:
    """Return a sort key, as for evaluations."""
    return row.position or 0, row.asked if not row.position else "", row.id


def _checksum(row: sa.Row[Any], arrays: Sequence[sa.Row[Any]]) -> str:
    fields = (row.id, row.identity, row.experiment, row.model, row.dataset, row.spec, without_command(row.provenance))
    return checksum(*fields, sorted((array.name, array.shape) for array in arrays))


def _array(name: str, shape: str, packed: bytes) -> Array:
    try:
        return unpack_array(packed, "<f8", tuple(json.loads(shape)), name).astype(np.float64)
    except (ValueError, TypeError) as failure:
        raise DamagedData(f"its array {name!r} is damaged ({failure})") from None
