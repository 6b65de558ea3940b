"""What several queries share: idempotent inserts, JSON texts, packed arrays, and lists of ids that fit into one query."""

import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite

# Ids in one query: SQLite limits the parameters.
IDS_PER_QUERY = 500


def insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows, except those whose key is there already."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


def to_json(value: Mapping[str, Any]) -> str:
    """Return the JSON text that a column holds. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def pack_array(array: NDArray[Any], dtype: str) -> bytes:
    """Return an array's values row by row as `dtype`, compressed."""
    return zlib.compress(array.astype(dtype).tobytes())


def unpack_array(packed: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the array that `pack_array` packed. Raises ValueError for any other bytes."""
    try:
        return np.frombuffer(zlib.decompress(packed), dtype=dtype).reshape(shape)
    except zlib.error as failure:
        raise ValueError(str(failure)) from None


def in_parts(ids: Collection[int]) -> Iterator[list[int]]:
    """Yield sorted lists of at most `IDS_PER_QUERY` ids."""
    ordered = sorted(ids)
    for start in range(0, len(ordered), IDS_PER_QUERY):
        yield ordered[start : start + IDS_PER_QUERY]
