"""Shards: the outcomes of an attack run, packed by column, some thousands in a row of the database.

A shard has three parts: which samples it is about, what a tally needs, and everything else. Reports read only the first two.
Each part is covered by a checksum that also depends on the samples; those of a run's shards add up to that of the run.
"""

import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from kwbench.errors import CannotEvaluate
from kwbench.outcome import Status
from kwbench.record.arrays import FIELDS, MISSING, OutcomeArrays
from kwbench.record.database import schema
from kwbench.record.database.checksums import damaged_run
from kwbench.record.database.packing import MOST_BYTES, compress, decompress, pack, unpack
from kwbench.record.database.samples import SampleList, SampleReader, digest, pack_ids

# Outcomes of a shard, at most.
LARGEST = 1 << 16
_IDENTITY = ("sample", "index", "label")
_DRAWS = ("selection_correct", "selection_draws", "fresh_correct", "fresh_draws")
_TALLIED = ("status", *_DRAWS)
_DETAILS = tuple(name for name in FIELDS if name not in (*_IDENTITY, *_TALLIED))
_TALLIED_KINDS = "Siiii"
_DETAIL_KINDS = "".join({"distance": "f", "seconds": "f", "other_status": "S", "note": "O"}.get(name, "i") for name in _DETAILS)
# The sums of a tally: six integers, and the seconds.
_SUMS = struct.Struct("<6qd")
_HELD = Status.HELD[:1].encode()
_LETTERS = [status.value[:1].encode() for status in Status]

_MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class Checksum:
    """The checksum of shards in any order: the number of their outcomes, and the sum of a checksum of each shard."""

    count: int = 0
    total: int = 0

    def __add__(self, other: "Checksum") -> "Checksum":
        return Checksum(self.count + other.count, (self.total + other.total) % _MODULUS)

    def __sub__(self, other: "Checksum") -> "Checksum":
        return Checksum(self.count - other.count, (self.total - other.total) % _MODULUS)

    def __str__(self) -> str:
        return f"{self.count} {self.total}"

    @classmethod
    def of(cls, text: str) -> "Checksum":
        """Return the checksum with this text. Raises ValueError for others."""
        count, total = text.split()
        return cls(int(count), int(total))


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """What a tally needs of one shard.

    Attributes:
        id: its row in the database.
        samples: its samples, by position in the split.
        columns: the statuses, and the four numbers of draws, in the order of `OutcomeArrays`.
        sums: forwards, backwards, outcomes with another status, those that held, outcomes with a prediction of the surrogate,
            those that were right, and seconds.
        checksum: of all these.
    """

    id: int
    samples: SampleList
    columns: Sequence[NDArray[Any]]
    sums: tuple[int, int, int, int, int, int, float]
    checksum: Checksum

    @property
    def possible(self) -> bool:
        """Whether an outcome may have these values, which only matters where no checksum shows that they were written."""
        status, selection_correct, selection_draws, fresh_correct, fresh_draws = self.columns
        right = [
            (correct >= 0) & (correct <= draws)
            for correct, draws in ((selection_correct, selection_draws), (fresh_correct, fresh_draws))
        ]
        return bool(np.isin(status, _LETTERS).all() and all(mask.all() for mask in right)) and min(self.sums) >= 0


def write_shards(
    connection: sa.Connection, attack_run: int, arrays: OutcomeArrays, ids: NDArray[np.int64]
) -> tuple[Checksum, Checksum]:
    """Insert outcomes, whose samples have these ids. Return the checksums of their tallies and of their details.

    Raises CannotEvaluate for a note that is too long to be read again.
    """
    if bool((np.diff(arrays.index) < 0).any()):
        order = np.argsort(arrays.index, kind="stable")
        arrays, ids = arrays.take(order), ids[order]
    tally = details = Checksum()
    for start in range(0, len(arrays), LARGEST):
        chosen = slice(start, start + LARGEST)
        of_tally, of_details = _write_shard(connection, attack_run, arrays.take(chosen), ids[chosen])
        tally += of_tally
        details += of_details
    return tally, details


def _write_shard(
    connection: sa.Connection, attack_run: int, arrays: OutcomeArrays, ids: NDArray[np.int64]
) -> tuple[Checksum, Checksum]:
    """Insert a shard, or several where notes are so long that one would not be read; see `write_shards`."""
    n, detailed = len(arrays), pack([getattr(arrays, name) for name in _DETAILS])
    if len(detailed) > MOST_BYTES:
        if n == 1:
            raise CannotEvaluate(f"the note of sample {arrays.sample[0].decode()} is too long: {len(detailed)} bytes")
        # JSON writes six bytes for a letter that is not ASCII.
        halves = (slice(None, n // 2), slice(n // 2, None))
        (tally, details), (more_tally, more_details) = (
            _write_shard(connection, attack_run, arrays.take(half), ids[half]) for half in halves
        )
        return tally + more_tally, details + more_details
    samples = digest(arrays.sample, arrays.index, arrays.label)
    tallied = _sums(arrays) + pack([getattr(arrays, name) for name in _TALLIED])
    row = {
        "attack_run": attack_run,
        "outcomes": n,
        "samples": pack_ids(ids),
        "tally": compress(tallied),
        "details": compress(detailed),
    }
    connection.execute(sa.insert(schema.shards), row)
    return _checksum(samples, tallied, n), _checksum(samples, detailed, n)


def select_shards(connection: sa.Connection, reader: SampleReader, attack_runs: Collection[int]) -> dict[int, list[Shard]]:
    """Return the shards of at most `IDS_PER_QUERY` attack runs, in the order of writing; runs without are left out.

    Raises DamagedData if one cannot be read.
    """
    column = schema.shards.c
    query = sa.select(column.attack_run, column.id, column.outcomes, column.samples, column.tally)
    shards: dict[int, list[Shard]] = {}
    for run, *row in connection.execute(query.where(column.attack_run.in_(attack_runs)).order_by(column.id)):
        try:
            shards.setdefault(run, []).append(_shard(connection, reader, *row))
        except (ValueError, TypeError, struct.error):
            raise damaged_run(connection, run) from None
    return shards


def select_stored(
    connection: sa.Connection, reader: SampleReader, attack_runs: Collection[int]
) -> Iterator[tuple[int, bytes, int, bytes]]:
    """Yield the shards of at most `IDS_PER_QUERY` attack runs, in the order of writing, without unpacking their tallies.

    Each is its attack run, the checksum of its samples, the number of its outcomes, and what a tally needs, as it is stored.
    Raises DamagedData if the samples cannot be read.
    """
    column = schema.shards.c
    query = sa.select(column.attack_run, column.outcomes, column.samples, column.tally)
    for run, n, samples, tally in connection.execute(query.where(column.attack_run.in_(attack_runs)).order_by(column.id)):
        try:
            yield run, reader.read(connection, samples, n).digest, n, bytes(tally)
        except (ValueError, TypeError, struct.error):
            raise damaged_run(connection, run) from None


def select_arrays(connection: sa.Connection, attack_run: int, shard: Shard) -> tuple[OutcomeArrays, Checksum]:
    """Return the outcomes of a shard, and the checksum of its details. Raises DamagedData if they cannot be read."""
    column, samples, n = schema.shards.c, shard.samples, len(shard.samples.index)
    packed = connection.execute(sa.select(column.details).where(column.id == shard.id)).scalar_one()
    try:
        content = decompress(packed)
        details = unpack(content, _DETAIL_KINDS, n)
    except (ValueError, TypeError):
        raise damaged_run(connection, attack_run) from None
    fields = dict(zip((*_TALLIED, *_DETAILS), (*shard.columns, *details), strict=True))
    arrays = OutcomeArrays(sample=samples.sample, index=samples.index, label=samples.label, **fields)
    return arrays, _checksum(samples.digest, content, n)


def total(checksums: Iterable[Checksum]) -> Checksum:
    """Return the checksum of an attack run with shards of these."""
    return sum(checksums, Checksum())


def _shard(connection: sa.Connection, reader: SampleReader, number: int, n: int, samples: bytes, tally: bytes) -> Shard:
    """Return what a row of the database holds. Raises ValueError, TypeError or struct.error if it cannot be read."""
    if not 0 < n <= LARGEST:
        raise ValueError(f"{n} outcomes in a shard")
    listed, content = reader.read(connection, samples, n), decompress(tally)
    columns = unpack(content[_SUMS.size :], _TALLIED_KINDS, n)
    return Shard(number, listed, columns, _SUMS.unpack_from(content), _checksum(listed.digest, content, n))


def _sums(arrays: OutcomeArrays) -> bytes:
    surrogate = arrays.surrogate_prediction != MISSING
    return _SUMS.pack(
        int(arrays.forwards.sum()),
        int(arrays.backwards.sum()),
        int((arrays.other_status != b"").sum()),
        int((arrays.other_status == _HELD).sum()),
        int(surrogate.sum()),
        int((surrogate & (arrays.surrogate_prediction == arrays.label)).sum()),
        float(arrays.seconds.sum()),
    )


def _checksum(samples: bytes, content: bytes, n: int) -> Checksum:
    value = hashlib.blake2b(content, digest_size=8, key=samples)
    return Checksum(n, int.from_bytes(value.digest(), "big"))
