"""The samples on record: each once, whatever number of attacks saw it. Shards name them by their ids."""

import hashlib
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.record.arrays import OutcomeArrays
from kwbench.record.database import schema
from kwbench.record.database.packing import compress, decompress, pack, unpack
from kwbench.record.database.statements import in_parts, insert

# Lists that are kept in memory.
LISTS = 256
# What precedes the steps from one id to the next.
_FIRST = struct.Struct("<q")


class SampleList:
    """Samples in the order of a shard's outcomes.

    Attributes:
        ids: their ids (n,), by which this database names them.
        index: their positions in the split (n,).
        digest: a checksum of their hashes, positions and labels; it does not depend on the ids.
    """

    def __init__(self, ids: NDArray[np.int64], table: "_Table", rows: NDArray[np.intp]) -> None:
        self.ids, self.index = ids, table.index[rows]
        self._table, self._rows = table, rows
        self.digest = digest(self.sample, self.index, self.label)

    @property
    def sample(self) -> NDArray[np.bytes_]:
        """Their hashes (n,)."""
        return self._table.sample[self._rows]

    @property
    def label(self) -> NDArray[np.int64]:
        """Their labels (n,)."""
        return self._table.label[self._rows]


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Samples by id, in ascending order."""

    ids: NDArray[np.int64]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    sample: NDArray[np.bytes_]


class SampleReader:
    """Reads lists of samples, and keeps some in memory. Several threads may share one, each with its connection.

    Shards of the same samples share one list: comparing its `index` with itself costs nothing.
    """

    def __init__(self) -> None:
        self._lists: dict[tuple[bytes, int], SampleList] = {}
        self._lock = threading.Lock()
        none = np.empty(0, dtype=np.int64)
        self._table = _Table(none, none, none, np.empty(0, dtype="S32"))

    def read(self, connection: sa.Connection, packed: bytes, n: int) -> SampleList:
        """Return the samples that `pack_ids` packed. Raises ValueError for others, and if one is not on record."""
        with self._lock:
            if (packed, n) not in self._lists:
                self._lists[packed, n] = self._read(connection, packed, n)
                if len(self._lists) > LISTS:
                    del self._lists[next(iter(self._lists))]
            return self._lists[packed, n]

    def _read(self, connection: sa.Connection, packed: bytes, n: int) -> SampleList:
        content = decompress(packed)
        (steps,) = unpack(content[_FIRST.size :], "i", n)
        ids = np.cumsum(steps) + _FIRST.unpack_from(content)[0]
        rows = self._rows(ids)
        if rows is None:
            self._load(connection, int(ids.min()), int(ids.max()))
            rows = self._rows(ids)
        if rows is None:
            raise ValueError("one of its samples is missing")
        return SampleList(ids, self._table, rows)

    def _rows(self, ids: NDArray[np.int64]) -> NDArray[np.intp] | None:
        """Return where the samples of these ids are among those in memory; None if some are not."""
        known = self._table.ids
        rows = np.searchsorted(known, ids)
        if not len(known) or not np.array_equal(known[np.minimum(rows, len(known) - 1)], ids):
            return None
        return rows

    def _load(self, connection: sa.Connection, first: int, last: int) -> None:
        column = schema.samples.c
        query = sa.select(column.id, column.index, column.label, column.sample).where(column.id.between(first, last))
        columns = list(zip(*connection.execute(query), strict=True)) or [()] * 4
        table = self._table
        kept = (table.ids < first) | (table.ids > last)
        ids, index, label, sample = (
            np.concatenate([before[kept], np.array(loaded, dtype=before.dtype)])
            for before, loaded in zip((table.ids, table.index, table.label, table.sample), columns, strict=True)
        )
        order = np.argsort(ids, kind="stable")
        self._table = _Table(ids[order], index[order], label[order], sample[order])


class SampleWriter:
    """Puts samples on record within a transaction.

    Attributes:
        written: the ids of the lists that this transaction wrote, by digest; they are good for others once it is complete.
    """

    def __init__(self, connection: sa.Connection, known: Mapping[bytes, NDArray[np.int64]]) -> None:
        """`known`: the ids of lists that earlier transactions wrote, by digest."""
        self._connection, self._known = connection, known
        self.written: dict[bytes, NDArray[np.int64]] = {}

    def write(self, outcomes: OutcomeArrays) -> NDArray[np.int64]:
        """Return the ids of the samples of outcomes (n,), which are put on record where they are missing."""
        key = digest(outcomes.sample, outcomes.index, outcomes.label)
        if key not in self._known:
            self.written[key] = self._write(outcomes)
        return self.written[key] if key in self.written else self._known[key]

    def _write(self, outcomes: OutcomeArrays) -> NDArray[np.int64]:
        samples = [sample.decode() for sample in outcomes.sample.tolist()]
        wanted = list(zip(samples, outcomes.index.tolist(), outcomes.label.tolist(), strict=True))
        ids = _select_ids(self._connection, samples)
        if missing := set(wanted) - ids.keys():
            rows = [dict(zip(("sample", "index", "label"), values, strict=True)) for values in missing]
            # In one order, so that no two programs wait for each other; by position, so that ids are consecutive.
            rows.sort(key=lambda row: (row["index"], row["sample"], row["label"]))
            insert(self._connection, schema.samples, rows)
            ids = _select_ids(self._connection, samples)
        return np.array([ids[key] for key in wanted], dtype=np.int64)


def pack_ids(ids: NDArray[np.int64]) -> bytes:
    """Return the ids of a shard's samples, packed. Most lists are runs of consecutive ids."""
    before = int(ids[0]) - 1
    return compress(_FIRST.pack(before) + pack([np.diff(ids, prepend=before)]))


def digest(sample: NDArray[np.bytes_], index: NDArray[np.int64], label: NDArray[np.int64]) -> bytes:
    """Return a checksum of a list of samples."""
    sha = hashlib.blake2b(sample.astype("S32", copy=False).tobytes(), digest_size=16)
    sha.update(index.astype("<i8").tobytes())
    sha.update(label.astype("<i8").tobytes())
    return sha.digest()


def _select_ids(connection: sa.Connection, samples: list[str]) -> dict[tuple[str, int, int], int]:
    """Return the ids of samples on record, by hash, position and label."""
    column = schema.samples.c
    query = sa.select(column.sample, column.index, column.label, column.id)
    ids = {}
    for part in in_parts(set(samples)):
        for sample, index, label, identity in connection.execute(query.where(column.sample.in_(part))):
            ids[sample, index, label] = identity
    return ids
