"""Packs a record small enough to be kept beside the page that was made from it, and unpacks it.

    python bench/papers/packed.py pack papers.db reports/papers.db.xz
    python bench/papers/packed.py unpack reports/papers.db.xz papers.db

A record that is in use may be packed, but not over a packed one that has what it lacks. Of the commands in it a packed one
keeps the names of files, but not the folders of the machine they were typed on. What is written replaces a file only once it is
whole.
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

# Before the name of a file, where a word or an option's value begins.
_FOLDERS = re.compile(r"(?<![^\s='\"])~?/(?:[^\s/'\"]+/)*")


def pack(record: Path, packed: Path) -> None:
    """Without the room that deleted rows left. Raises FileExistsError if something would be lost that `packed` has."""
    with tempfile.TemporaryDirectory() as folder:
        if packed.exists():
            before = Path(folder) / "before"
            unpack(packed, before)
            known, held = _measured(record), _measured(before)
            lost = [identity for identity, rows in held.items() if known.get(identity, -1) < rows]
            if lost:
                raise FileExistsError(
                    f"{packed}: has {len(lost)} measurements that {record} lacks; unpack it and go on from there, or remove it"
                )
        whole = Path(folder) / "record"
        with closing(sqlite3.connect(f"file:{record}?mode=ro", uri=True)) as connection:
            connection.execute("VACUUM INTO ?", (str(whole),))
        _forget_folders(whole)
        write_whole(packed, lzma.compress(whole.read_bytes(), preset=9))


def _forget_folders(record: Path) -> None:
    with closing(sqlite3.connect(record)) as connection, connection:
        for table in ("evaluations", "experiments"):
            for row, provenance in connection.execute(f"SELECT id, provenance FROM {table}").fetchall():  # noqa: S608
                known = json.loads(provenance)
                if "command" in known:
                    known["command"] = _FOLDERS.sub("", known["command"])
                    changed = (json.dumps(known, sort_keys=True), row)
                    connection.execute(f"UPDATE {table} SET provenance = ? WHERE id = ?", changed)  # noqa: S608


def _measured(record: Path) -> dict[str, int]:
    """How many outcomes every attack run has, and arrays every experiment, by identity."""
    rows: dict[str, int] = {}
    with closing(sqlite3.connect(f"file:{record}?mode=ro", uri=True)) as connection:
        for owner, part, key in (("attack_runs", "outcomes", "attack_run"), ("experiments", "arrays", "experiment")):
            query = f"SELECT identity, (SELECT count(*) FROM {part} WHERE {key} = {owner}.id) FROM {owner}"  # noqa: S608
            rows |= dict(connection.execute(query).fetchall())
    return rows


def unpack(packed: Path, record: Path) -> None:
    """To where no record is yet. Raises FileExistsError if there is one."""
    if record.exists():
        raise FileExistsError(f"{record}: is there already, and a record is never written over; name another file")
    with lzma.open(packed) as source:
        write_whole(record, source.read())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    {"pack": pack, "unpack": unpack}[asked.what](asked.source, asked.target)
