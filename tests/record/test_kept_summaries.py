"""Later reports of a large record take summaries from a file only if nothing has changed that they were derived from."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kwbench.errors import DamagedData
from kwbench.record import derivation
from kwbench.record import summaries as module
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from support.damage import change_outcomes_of_file, former_record, with_values
from support.records import deterministic, drawn, record, rows, specification

Letters = dict[str, str]
OURS: Letters = {"clean": "whhhh", "pgd": "whbhh", "cw": "wbbhh"}


@pytest.fixture(autouse=True)
def _all_summaries_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_FROM", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store.open(str(path), create=True)) as opened:
        yield opened


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose summaries were derived, in order."""
    models: list[str] = []

    def derive(evaluation: Any, *arguments: Any) -> Summary:
        models.append(evaluation.spec.model)
        return original(evaluation, *arguments)

    original = derivation.derive
    monkeypatch.setattr(module, "derive", derive)
    return models


def kept_files(tmp_path: Path) -> list[Path]:
    return [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def assert_equal(first: Summary, second: Summary) -> None:
    for field in fields(Summary):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        else:
            assert ours == theirs, field.name


def test_kept_summaries_are_those_of_the_outcomes(store: Store, derived: list[str]) -> None:
    deterministic(store, OURS, model="plain", n=5)
    deterministic(
        store,
        {"clean": "whhhh", "pgd": ".bbhh", "cw": "...bh"},
        model="cascade",
        n=5,
        spec={"cascade": True, "protocol_attacks": ["pgd"], "passes": {"pgd": 40, "cw": 7}},
    )
    record(
        store,
        specification(model="random", stochastic=True, n=3),
        {"clean": drawn([99, 80, 70], [98, 81, 69]), "pgd": drawn([90, 85, 10], [91, 84, 12])},
    )
    first = summaries(store)
    assert derived == ["plain", "cascade", "random"]
    assert all(summary.complete for summary in first)
    derived.clear()
    second = summaries(store)
    assert derived == []
    for one, other in zip(first, second, strict=True):
        assert_equal(one, other)
    # Evaluations on the same samples share one array.
    assert second[0].index is second[1].index


def test_an_evaluation_with_other_outcomes_is_derived_anew_and_the_others_are_not(store: Store, derived: list[str]) -> None:
    evaluation = deterministic(store, {"clean": "whhh", "pgd": "whh"}, model="grows", n=4)
    deterministic(store, OURS, model="stays", n=5)
    assert [summary.complete for summary in summaries(store)] == [False, True]
    derived.clear()
    store.append(evaluation.attack_runs["pgd"], rows("b", start=3))
    (grown, _) = summaries(store)
    assert derived == ["grows"]
    assert grown.a_rob is not None
    assert grown.a_rob.value == 0.5
    derived.clear()
    (again, _) = summaries(store)
    assert derived == []
    assert_equal(grown, again)


@pytest.mark.parametrize("guarded", [True, False])
def test_changed_outcomes_are_noticed(path: Path, store: Store, derived: list[str], guarded: bool) -> None:
    evaluation = deterministic(store, OURS, n=5)
    summaries(store)
    derived.clear()
    # Either the checksums do not fit the change, or there are none.
    change_outcomes_of_file(path, with_values(status=b"h"), evaluation.attack_runs["cw"], guarded=guarded)
    if not guarded:
        (summary,) = summaries(store)
        assert derived == ["net"]
        assert summary.attacks[1].statuses["held"] == 5
    else:
        with pytest.raises(DamagedData):
            summaries(store)


def test_a_changed_sample_is_noticed(path: Path, store: Store) -> None:
    deterministic(store, OURS, n=5)
    summaries(store)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE samples SET label = label + 1 WHERE id = 2")
    with closing(Store.open(str(path))) as again, pytest.raises(DamagedData):
        summaries(again)


def test_what_was_recorded_without_checksums_is_not_kept(tmp_path: Path, path: Path, derived: list[str]) -> None:
    with closing(Store.open(str(former_record(3, path)))) as store:
        first = summaries(store)
        assert first
        count = len(derived)
        for one, other in zip(first, summaries(store), strict=True):
            assert_equal(one, other)
    assert len(derived) == 2 * count
    assert kept_files(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "folder"])
def test_a_damaged_file_is_ignored_and_replaced(tmp_path: Path, store: Store, derived: list[str], damage: str) -> None:
    deterministic(store, OURS, n=5)
    (before,) = summaries(store)
    (file,) = kept_files(tmp_path)
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        changed = {"cut": content[:-1], "changed": content.replace(b'"held": 2', b'"held": 3'), "empty": b""}[damage]
        assert changed != content
        file.write_bytes(changed)
    derived.clear()
    (after,) = summaries(store)
    assert derived == ["net"]
    assert_equal(before, after)
    if damage != "folder":
        assert file.read_bytes() == content


def test_another_version_of_kwbench_derives_anew(store: Store, derived: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    deterministic(store, OURS, n=5)
    summaries(store)
    derived.clear()
    monkeypatch.setattr("kwbench.record.kept_summaries.code_digest", lambda: "another")
    summaries(store)
    assert derived == ["net"]


def test_small_records_keep_nothing(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    deterministic(store, OURS, n=5)
    monkeypatch.setattr(module, "KEPT_FROM", 16)
    summaries(store)
    assert kept_files(tmp_path) == []


def test_summaries_of_some_evaluations_change_nothing_that_is_kept(tmp_path: Path, store: Store, derived: list[str]) -> None:
    first = deterministic(store, OURS, n=5)
    deterministic(store, OURS, n=5, model="other")
    summaries(store, [first])
    assert kept_files(tmp_path) == []
    summaries(store)
    (file,) = kept_files(tmp_path)
    content = file.read_bytes()
    derived.clear()
    summaries(store, [first])
    assert derived == ["net"]
    assert file.read_bytes() == content
