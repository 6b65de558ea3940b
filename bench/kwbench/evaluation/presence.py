"""Presence of a driver: while it evaluates, the database says what it does, for `kwbench status`."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from kwbench.errors import KwbenchError
from kwbench.evaluation.runner import Progress
from kwbench.record.database.drivers import Driver
from kwbench.record.store import Store

# Seconds between writes; shorter commands leave no trace.
INTERVAL = 2.0


@contextmanager
def presence(store: Store, command: str, models: int, interval: float = INTERVAL) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that takes the progress of evaluations, which a thread writes into the database now and then.

    A database that cannot be written stops no evaluation: the evaluation itself finds that out.
    """
    identity, began, ended = uuid.uuid4().hex, time.monotonic(), threading.Event()
    newest: list[Progress] = []
    seen: dict[str, int] = {}

    def note(progress: Progress) -> None:
        seen.setdefault(progress.model, len(seen) + 1)
        newest[:] = [progress]

    def write() -> None:
        while not ended.wait(interval):
            for progress in tuple(newest):
                driver = Driver(
                    id=identity,
                    host=socket.gethostname(),
                    process=os.getpid(),
                    command=command,
                    models=models,
                    position=seen[progress.model],
                    seconds=time.monotonic() - began,
                    **{name: value for name, value in asdict(progress).items() if name != "retried"},
                )
                with suppress(KwbenchError):
                    store.write_driver(driver)
                    written.set()

    written = threading.Event()
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield note
    finally:
        ended.set()
        thread.join()
        if written.is_set():
            with suppress(KwbenchError):
                store.delete_driver(identity)
