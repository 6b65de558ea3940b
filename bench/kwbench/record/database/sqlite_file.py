"""SQLite files: creating one atomically, recognising ours, and configuring connections."""

import glob
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.formatting import plain

# "kwbn" in SQLite's header distinguishes our databases from those of other programs.
APPLICATION_ID = 0x6B77626E

# The options of an engine for a database in memory. It lives as long as its connection, which threads use in turn.
IN_MEMORY: dict[str, Any] = {
    "poolclass": sa.QueuePool,
    "pool_size": 1,
    "max_overflow": 0,
    "connect_args": {"check_same_thread": False},
}

# SQLite checks about 50 MB a second.
_SMALL_FILE = 4 << 20


def create_file(path: Path, create_tables: Callable[[sa.Connection], None]) -> None:
    """Create a database under its name whole or not at all, so that a kill cannot leave an empty file there.

    Raises CannotEvaluate if it cannot be written.
    """
    with _draft(path, create_tables) as draft:
        _publish(draft, path)


def create_file_on_first_connection(engine: sa.Engine, path: Path, create_tables: Callable[[sa.Connection], None]) -> None:
    """Create the database when the engine first connects, unless another process has created it by then.

    Raises CannotEvaluate now if it cannot be written.
    """
    with _draft(path, create_tables):
        pass

    def create(*_: object) -> None:
        if not path.exists():
            create_file(path, create_tables)

    sa.event.listen(engine, "do_connect", create, once=True)


@contextmanager
def _draft(path: Path, create_tables: Callable[[sa.Connection], None]) -> Iterator[Path]:
    """Write an empty database beside `path`, and delete it at the end of the block. Raises CannotEvaluate if that fails."""
    if not path.parent.is_dir():
        raise CannotEvaluate(f"{path}: the folder {path.parent} does not exist")
    _remove_drafts_of_the_dead(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(draft)), poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            create_tables(connection)
        yield draft
    except (OSError, sa.exc.OperationalError) as failure:
        reason = failure.orig if isinstance(failure, sa.exc.OperationalError) else failure
        raise CannotEvaluate(f"{path}: the database cannot be written ({reason})") from None
    finally:
        with suppress(OSError):
            draft.unlink()


def _remove_drafts_of_the_dead(path: Path) -> None:
    """Remove the drafts that processes of this machine left when they were killed."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        process = draft.name.removeprefix(f".{path.name}.").split(".")[0]
        with suppress(ValueError, OSError, OverflowError):
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                draft.unlink()


def check_file(path: Path) -> None:
    """Check that a file is a kwbench database of full length.

    Raises:
        CannotEvaluate: it does not exist, or is a folder.
        DamagedData: it is not a SQLite database, belongs to another program, or was cut short.
    """
    if not path.exists():
        raise CannotEvaluate(f"{path}: no such database; `kwbench evaluate` creates one")
    if not path.is_file():
        raise CannotEvaluate(f"{path}: a {'folder' if path.is_dir() else 'device'}, not a database file")
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        # An empty file is a valid empty SQLite database; accepting it would hide that the record was lost.
        size = path.stat().st_size
        raise DamagedData(f"{path}: not a kwbench database ({size} bytes); move it away or name another with --db")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise DamagedData(f"{path}: a SQLite database of another program; name another with --db")
    _check_length(path, header)


def check_schema(connection: sa.Connection, path: Path) -> None:
    """Refuse a file whose schema holds code: views, triggers and virtual tables, whose queries might never end.

    Raises DamagedData.
    """
    code = "type IN ('view', 'trigger') OR sql LIKE 'CREATE VIRTUAL%'"
    found = connection.exec_driver_sql(f"SELECT type, name FROM sqlite_master WHERE {code}").first()  # noqa: S608 - constant
    if found is not None:
        raise DamagedData(f"{path}: holds the {found[0]} {plain(found[1])}, which kwbench never writes; name another with --db")


def check_integrity(connection: sa.Connection, path: Path) -> None:
    """Have SQLite check a small file: its pages, its indexes and the constraints of its rows. Raises DamagedData.

    Large files would take seconds; the checksums of `checksums` guard what is read from them.
    """
    if path.exists() and path.stat().st_size <= _SMALL_FILE:
        problem = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
        if problem != "ok":
            raise DamagedData(f"damaged: SQLite finds {problem!r}; restore it from a backup or name another with --db")


def check_all_pages(connection: sa.Connection) -> None:
    """Have SQLite check a file of any size, and that rows refer to rows that exist. Raises DamagedData."""
    problems = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalars().all()
    if problems != ["ok"]:
        raise DamagedData(f"damaged: SQLite finds {plain(problems[0])!r}; restore it from a backup")
    orphan = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if orphan is not None:
        raise DamagedData(
            f"damaged: a row of {orphan[0]} refers to a row of {orphan[2]} that is missing; restore it from a backup"
        )


def is_damage(failure: BaseException | None) -> bool:
    """Return whether an operational error means damage: a table that is missing, or a text that is none.

    Others mean that the file is locked, read-only or on a full disk.
    """
    return getattr(failure, "sqlite_errorcode", sqlite3.SQLITE_ERROR) == sqlite3.SQLITE_ERROR


def configure(engine: sa.Engine) -> None:
    """Make every connection of an engine use explicit transactions, foreign keys and the safe rollback journal."""
    sa.event.listen(engine, "connect", _set_pragmas)
    sa.event.listen(engine, "begin", _begin)


def _publish(draft: Path, path: Path) -> None:
    """Give the draft its name, unless another process was faster; its file serves as well."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            draft.replace(path)


def _check_length(path: Path, header: bytes) -> None:
    """Refuse a file that was cut short. SQLite notices only when it reads a missing page; until then its counts are wrong."""
    journal = Path(f"{path}-journal")
    page = int.from_bytes(header[16:18], "big") or 1
    expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    # The header gives the length unless an old SQLite wrote last. A journal means that a transaction is under way.
    if header[24:28] == header[92:96] and not journal.exists() and path.stat().st_size < expected and not journal.exists():
        raise DamagedData(
            f"{path}: cut short, {path.stat().st_size} of {expected} bytes; restore it from a backup or name another with --db"
        )


def _set_pragmas(connection: Any, _: object) -> None:
    connection.isolation_level = None  # SQLAlchemy begins the transactions
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 60000")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = DELETE")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    # A transaction that reads before it writes must have the lock from the start, or two of them could wait for each other.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
