"""Packs a record small enough to be kept beside the page that was made from it, and unpacks it.

    python bench/packed.py pack papers.db reports/papers.db.xz
    python bench/packed.py unpack reports/papers.db.xz papers.db

A record that is in use may be packed. What is written replaces a file only once it is whole.
"""

import argparse
import lzma
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path


def pack(record: Path, packed: Path) -> None:
    """Without the room that deleted rows left."""
    with tempfile.TemporaryDirectory(dir=packed.parent) as folder:
        whole, draft = Path(folder) / "record", Path(folder) / "packed"
        with closing(sqlite3.connect(f"file:{record}?mode=ro", uri=True)) as connection:
            connection.execute("VACUUM INTO ?", (str(whole),))
        with whole.open("rb") as source, lzma.open(draft, "wb", preset=9) as target:
            shutil.copyfileobj(source, target)
        draft.replace(packed)


def unpack(packed: Path, record: Path) -> None:
    """To where no record is yet. Raises FileExistsError if there is one."""
    if record.exists():
        raise FileExistsError(f"{record}: is there already, and a record is never written over; name another file")
    with tempfile.TemporaryDirectory(dir=record.parent) as folder:
        draft = Path(folder) / "record"
        with lzma.open(packed) as source, draft.open("wb") as target:
            shutil.copyfileobj(source, target)
        draft.replace(record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    {"pack": pack, "unpack": unpack}[asked.what](asked.source, asked.target)
