"""Shards hold whatever outcomes hold, and shards that a stranger wrote, without checksums, are refused by what they hold."""

import json
import sqlite3
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.record.database import packing, shards
from kwbench.record.store import Store
from support.records import deterministic, record, rows, specification

_N = 4
_HEADER = struct.Struct("<BBq")


def _rewritten(content: bytes, kinds: str, place: int, header: bytes, values: bytes) -> bytes:
    """Return the content of a shard in which a column is replaced by another header and other bytes."""
    packed = [packing._PACK[column.dtype.kind](column) for column in packing.unpack(content, kinds, _N)]
    packed[place] = header, values
    return b"".join([one for one, _ in packed] + [one for _, one in packed])


def _tally(place: int, header: tuple[int, int, int], values: bytes = b"") -> Callable[[bytes], bytes]:
    size = shards._SUMS.size
    return lambda content: (
        content[:size] + _rewritten(content[size:], shards._TALLIED_KINDS, place, _HEADER.pack(*header), values)
    )


def _notes(text: bytes) -> Callable[[bytes], bytes]:
    return lambda content: _rewritten(content, shards._DETAIL_KINDS, -1, _HEADER.pack(0, 0, len(text)), text)


@pytest.mark.parametrize(
    ("column", "change"),
    [
        pytest.param("details", _notes(b"[" * 1_000_000), id="notes that nest"),
        pytest.param("details", _notes(b'[["a"],"b","c","d"]'), id="a note that is a list"),
        pytest.param("details", _notes(b"[1,2,3,4]"), id="notes that are numbers"),
        pytest.param("details", _notes(b'"text"'), id="one note for all"),
        pytest.param("details", _notes(json.dumps(["a"] * 5, separators=(",", ":")).encode()), id="too many notes"),
        pytest.param("details", _notes(b'["a","b","c","d",]'), id="a comma too many"),
        pytest.param("tally", _tally(0, (0, 0, ord("z"))), id="a status that there is not"),
        pytest.param("tally", _tally(0, (3, 0, 0), b"h" * 3 * _N), id="wide letters"),
        pytest.param("tally", _tally(1, (0, 0, -5)), id="negative draws"),
        pytest.param("tally", _tally(3, (0, 0, 5)), id="more correct draws than draws"),
        pytest.param("details", lambda content: bytes(1 << 27), id="many zeros"),
    ],
)
def test_impossible_shards_without_checksums_are_named_as_damage(
    tmp_path: Path, column: str, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "results.db"
    with closing(Store.open(str(path), create=True)) as store:
        run = deterministic(store, {"pgd": "whbh"}).attack_runs["pgd"]
    with closing(sqlite3.connect(path)) as connection, connection:
        (packed,) = connection.execute(f"SELECT {column} FROM shards").fetchone()  # noqa: S608 - a constant
        packed = zlib.compress(change(zlib.decompress(packed)))
        connection.execute(f"UPDATE shards SET {column} = ?", (packed,))  # noqa: S608 - a constant
        connection.execute("DELETE FROM attack_run_checksums")
    with closing(Store.open(str(path))) as store, pytest.raises(DamagedData, match="the outcomes of attack 'pgd' on 'net'"):
        store.outcomes(run)


def test_a_list_of_more_notes_than_outcomes_is_refused_before_it_is_read() -> None:
    content = b"[" + b'"",' * 5_000_000 + b'""]'
    tracemalloc.start()
    with pytest.raises(ValueError, match="no list of 4 texts"):
        packing.unpack(_HEADER.pack(0, 0, len(content)) + content, "O", _N)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(content)


def test_notes_of_any_characters_are_read_as_they_were_written(store: Store) -> None:
    notes = ['"],["', "\\", "\ud800 half a pair", "NUL \0 and \x1b[31m", ',"', "", "二 \U0001f600", "line\nline\r"]
    outcomes = [replace(row, note=note) for row, note in zip(rows("e" * len(notes)), notes, strict=True)]
    run = record(store, specification(n=len(notes)), {"pgd": outcomes}).attack_runs["pgd"]
    assert [outcome.note for outcome in store.outcomes(run)] == notes


def test_long_notes_take_several_shards_instead_of_one_that_cannot_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (packing, shards):
        monkeypatch.setattr(module, "MOST_BYTES", 5000)
    outcomes = [replace(row, note=f"{row.index} ä" * 50) for row in rows("e" * 40)]
    run = record(store, specification(n=40), {"pgd": outcomes}).attack_runs["pgd"]
    assert store.outcomes(run) == outcomes
    with pytest.raises(CannotEvaluate, match=r"the note of sample .* is too long"):
        store.append(run, [replace(row, note="ä" * 5000) for row in rows("e", start=40)])
    assert store.outcomes(run) == outcomes
