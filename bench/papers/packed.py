"""Pack a record small enough to be kept beside the page made from it, and unpack it.

    python bench/papers/packed.py pack papers.db reports/papers.db.xz
    python bench/papers/packed.py unpack reports/papers.db.xz papers.db

A record may be packed while it is in use; one of an earlier version is brought up to date before. A packed record is not
replaced by one that lacks some of its rows. The commands in a packed record keep the names of files, but lose their folders.
Files are written atomically.
"""

import argparse
import json
import lzma
import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from kwbench.files import write_whole
from kwbench.record.store import Store

# Folders before the name of a file, where a word or an option's value begins.
_FOLDERS = re.compile(r"(?<![^\s='\"])~?/(?:[^\s/'\"]+/)*")


def pack(record: Path, packed: Path) -> None:
    """Write a packed record, without the space that deleted rows left.

    Raises FileExistsError if `packed` has rows that `record` lacks.
    """
    with tempfile.TemporaryDirectory() as folder:
        counts = _count_rows(record)
        if packed.exists():
            previous = Path(folder) / "previous"
            unpack(packed, previous)
            lost = [identity for identity, rows in _count_rows(previous).items() if counts.get(identity, -1) < rows]
            if lost:
                raise FileExistsError(
                    f"{packed}: has {len(lost)} measurements that {record} lacks; unpack it and go on from there, or remove it"
                )
        copy = Path(folder) / "record"
        with closing(sqlite3.connect(f"file:{record}?mode=ro", uri=True)) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
        _remove_folders(copy)
        write_whole(packed, lzma.compress(copy.read_bytes(), preset=9))


def unpack(packed: Path, record: Path) -> None:
    """Write the record of a packed one to a new file. Raises FileExistsError if the file exists."""
    if record.exists():
        raise FileExistsError(f"{record}: exists, and a record is never overwritten; name another file")
    with lzma.open(packed) as source:
        write_whole(record, source.read())


def _remove_folders(record: Path) -> None:
    """Remove the folders from the commands in a record's provenance."""
    with closing(sqlite3.connect(record)) as connection, connection:
        for table in ("evaluations", "experiments"):
            for row, text in connection.execute(f"SELECT id, provenance FROM {table}").fetchall():  # noqa: S608
                provenance = json.loads(text)
                if "command" in provenance:
                    provenance["command"] = _FOLDERS.sub("", provenance["command"])
                    changed = (json.dumps(provenance, sort_keys=True), row)
                    connection.execute(f"UPDATE {table} SET provenance = ? WHERE id = ?", changed)  # noqa: S608


def _count_rows(record: Path) -> dict[str, int]:
    """Return the number of outcomes of each attack run, and of arrays of each experiment, by identity."""
    with closing(Store.open(str(record))) as store:
        tallies = store.tallies()
        rows = {
            attack.identity: len(tallies[run]) if (run := evaluation.attack_runs[attack.label]) in tallies else 0
            for evaluation in store.evaluations()
            for attack in evaluation.spec.attacks
        }
        return rows | {measurement.identity: len(measurement.arrays) for measurement in store.experiments()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    {"pack": pack, "unpack": unpack}[arguments.action](arguments.source, arguments.target)
