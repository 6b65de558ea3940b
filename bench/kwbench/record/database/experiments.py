"""Queries on experiments and the arrays that they measured."""

import json
from datetime import UTC, datetime

import numpy as np
import sqlalchemy as sa

from kwbench.errors import DamagedData
from kwbench.record.database import schema
from kwbench.record.database.statements import insert, pack_array, to_json, unpack_array
from kwbench.record.measurement import Array, Measurement


def insert_measurement(connection: sa.Connection, measurement: Measurement) -> None:
    """Insert a measurement if it is missing, and note that it was asked for now."""
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
    insert(connection, table, [row])
    same = table.c.identity == measurement.identity
    connection.execute(sa.update(table).where(same).values(asked=asked))
    experiment = connection.execute(sa.select(table.c.id).where(same)).scalar_one()
    arrays = [
        {
            "experiment": experiment,
            "name": name,
            "shape": json.dumps(array.shape),
            "numbers": pack_array(array, "<f8"),
        }
        for name, array in measurement.arrays.items()
    ]
    insert(connection, schema.arrays, arrays)


def select_measurements(connection: sa.Connection, identity: str | None = None) -> list[Measurement]:
    """Return all measurements, the newest last, or the one with this identity. Raises DamagedData for damaged arrays."""
    table = schema.experiments
    chosen = sa.true() if identity is None else table.c.identity == identity
    arrays: dict[int, dict[str, Array]] = {}
    query = sa.select(schema.arrays).join(table, table.c.id == schema.arrays.c.experiment)
    for row in connection.execute(query.where(chosen).order_by(schema.arrays.c.experiment, schema.arrays.c.name)):
        arrays.setdefault(row.experiment, {})[row.name] = _array(row.name, row.shape, row.numbers)
    rows = connection.execute(sa.select(table).where(chosen).order_by(table.c.asked, table.c.id))
    return [
        Measurement(
            identity=row.identity,
            experiment=row.experiment,
            model=row.model,
            dataset=row.dataset,
            spec=json.loads(row.spec),
            provenance=json.loads(row.provenance),
            arrays=arrays.get(row.id, {}),
        )
        for row in rows
    ]


def _array(name: str, shape: str, packed: bytes) -> Array:
    try:
        return unpack_array(packed, "<f8", tuple(json.loads(shape))).astype(np.float64)
    except (ValueError, TypeError) as failure:
        raise DamagedData(f"the array {name!r} of an experiment is damaged ({failure})") from None
