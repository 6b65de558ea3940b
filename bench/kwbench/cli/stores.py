"""The databases that a command opens, and that are closed when it ends."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from kwbench.imports import importing

if TYPE_CHECKING:
    from kwbench.record.store import Store

_opened = ExitStack()


def open_store(db: str, *, create: bool = False, deferred: bool = False, upgraded: bool = True) -> "Store":
    """Open a database until the command ends; see `Store.open`."""
    with importing():
        from kwbench.record.store import Store

    store = Store.open(db, create=create, deferred=deferred, upgraded=upgraded)
    _opened.callback(store.close)
    return store


def close_stores() -> None:
    """Close all that `open_store` has opened."""
    _opened.close()
