"""Which commands evaluate into a database now."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kwbench.errors import CannotEvaluate
from kwbench.evaluation.presence import presence
from kwbench.evaluation.runner import Progress
from kwbench.record.database.drivers import Driver
from kwbench.record.store import Store
from support.command_line import Kwbench
from support.postgres import Server

DRIVER = Driver("a" * 32, "here", 7, "kwbench evaluate\x1b[2J", 3, 2, "small", "pgd", 16, 64, 80, 128, 12.0)


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "results.db")
    server: Server = request.getfixturevalue("postgres")
    return server.database("status")


def until(condition: Callable[[], bool]) -> None:
    latest = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.01)


def test_a_command_is_shown_while_it_evaluates_and_not_afterwards(kwb: Kwbench, db: str) -> None:
    store = Store.open(db, create=True)
    with presence(store, "kwbench evaluate", 3, interval=0.01) as note:
        assert kwb("status", "--db", db).out == "nothing is running\n"
        note(Progress("first", "pgd", 1, 8, 1, 16))
        note(Progress("second", "square", 2, 8, 10, 16))
        until(lambda: bool(store.drivers()))
        (row,) = kwb("status", "--db", db, "--json").json
        assert row["running"]
        assert row["host"] == socket.gethostname()
        assert [row[key] for key in ("model", "position", "models", "attack")] == ["second", 2, 3, "square"]
        assert [row[key] for key in ("done", "samples", "done_in_all", "rows_in_all")] == [2, 8, 10, 16]
        assert row["silent"] < 30
        note(Progress("second", "square", 5, 8, 13, 16))
        until(lambda: store.drivers()[0].done == 5)
        assert " 5/8 " in kwb("status", "--db", db).out
    assert kwb("status", "--db", db, "--watch").out == "nothing is running\n"
    store.close()


def test_watch_ends_with_the_last_command_that_writes(kwb: Kwbench, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open("results.db", create=True)
    store.write_driver(DRIVER)
    monkeypatch.setattr("kwbench.cli.status.time.sleep", lambda _: store.delete_driver(DRIVER.id))
    out = kwb("status", "--watch").out
    assert "here:7" in out
    assert " 62 % " in out
    assert "\x1b" not in out
    assert out.endswith("nothing is running\n")
    store.close()


def test_a_command_that_was_killed_is_shown_as_silent_and_forgotten_after_a_week(
    kwb: Kwbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open("results.db", create=True)
    now = "kwbench.record.database.drivers._now"
    monkeypatch.setattr(now, lambda _: 1e9)
    store.write_driver(DRIVER)
    monkeypatch.setattr(now, lambda _: 1e9 + 3600)
    out = kwb("status", "--watch").out  # it does not wait for the dead
    assert "silent for 1 h" in out
    monkeypatch.setattr(now, lambda _: 1e9 + 8 * 24 * 3600)
    store.write_driver(Driver("b" * 32, *list(vars(DRIVER).values())[1:]))
    assert [driver.id[0] for driver in store.drivers()] == ["b"]
    store.close()


def test_a_database_that_takes_no_status_stops_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    tried = []

    def refuse(driver: Driver) -> None:
        tried.append(driver)
        raise CannotEvaluate("read only")

    monkeypatch.setattr(store, "write_driver", refuse)
    with presence(store, "", 1, interval=0.01) as note:
        note(Progress("small", "pgd", 1, 8, 1, 16))
        until(lambda: len(tried) > 1)
    store.close()


def test_status_of_commands_leaves_the_record_and_its_checksums_alone(kwb: Kwbench) -> None:
    assert kwb("evaluate", "small", "--attack", "fgsm", "--n", "8", "--tile", "8", "--threads", "1").code == 0
    store = Store.open("results.db")
    store.write_driver(DRIVER)
    store.close()
    assert kwb("db", "check").code == 0
    assert kwb("db", "merge", "other.db", "results.db").code == 0
    other = Store.open("other.db")
    assert other.drivers() == []
    other.close()
