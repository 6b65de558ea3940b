"""What several queries share: inserts, locks, JSON texts, packed arrays, and lists of ids that fit into one query."""

import hashlib
import json
import math
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import sqlite

# Ids in one query: SQLite limits the parameters.
IDS_PER_QUERY = 500

# Bytes that any array may expand to, and how many times its packed size a larger one may.
_SMALL, _MOST_EXPANDED = 1 << 27, 100


def insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows, except those whose key is there already."""
    if not rows:
        return
    connection.execute(_insert_into(connection, table).on_conflict_do_nothing(), rows)


def upsert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    """Insert a row, or change the one that has its primary key."""
    key = [column.name for column in table.primary_key]
    changes = {name: value for name, value in row.items() if name not in key}
    connection.execute(_insert_into(connection, table).values(row).on_conflict_do_update(index_elements=key, set_=changes))


def _insert_into(connection: sa.Connection, table: sa.Table) -> Any:
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql  # half a second that most commands need not wait

        return postgresql.insert(table)
    return sqlite.insert(table)


def lock(connection: sa.Connection, table: sa.Table, chosen: sa.ColumnElement[bool] | None = None) -> None:
    """Make other transactions that lock the same rows wait. SQLite locks the whole database when a writing one begins."""
    connection.execute(sa.select(sa.literal(1)).select_from(table).where(*[] if chosen is None else [chosen]).with_for_update())


def to_json(value: Mapping[str, Any]) -> str:
    """Return the JSON text that a column holds. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def pack_array(array: NDArray[Any], dtype: str, name: str) -> bytes:
    """Return an array's values row by row as `dtype`, compressed, and a checksum of these, of the shape and of the name."""
    values = array.astype(dtype).tobytes()
    return zlib.compress(values) + _array_checksum(values, array.shape, name)


def unpack_array(packed: bytes, dtype: str, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Return the array that `pack_array` packed; early versions of kwbench wrote no checksum. Raises ValueError for others."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > _SMALL and size > _MOST_EXPANDED * len(packed):
        raise ValueError(f"{len(packed)} bytes expand to {size}")
    stream = zlib.decompressobj()
    try:
        values = stream.decompress(packed, size + 1)
    except zlib.error as failure:
        raise ValueError(str(failure)) from None
    if len(values) != size or not stream.eof:
        raise ValueError("its length does not fit its shape")
    if stream.unused_data not in (b"", _array_checksum(values, shape, name)):
        raise ValueError("its checksum does not match")
    return np.frombuffer(values, dtype=dtype).reshape(shape)


def _array_checksum(values: bytes, shape: tuple[int, ...], name: str) -> bytes:
    return hashlib.blake2b(values + ascii((tuple(map(int, shape)), name)).encode(), digest_size=16).digest()


Id = TypeVar("Id", int, str)


def in_parts(ids: Collection[Id]) -> Iterator[list[Id]]:
    """Yield sorted lists of at most `IDS_PER_QUERY` ids."""
    ordered = sorted(ids)
    for start in range(0, len(ordered), IDS_PER_QUERY):
        yield ordered[start : start + IDS_PER_QUERY]
