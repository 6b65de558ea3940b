"""Baselines are stable, intact and complete, or refused."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.record.store import Store
from kwbench.regression.baseline import update_baseline
from kwbench.regression.gate import check
from support.baselines import net
from support.records import deterministic


def test_the_baseline_is_stable_and_keeps_other_models(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old", model="b")
    net(store, 0.6, checkpoint="old", model="a")
    update_baseline(store, baseline)
    before = baseline.read_bytes()
    update_baseline(store, baseline)
    assert baseline.read_bytes() == before
    net(store, 0.5, checkpoint="new", model="b")
    update_baseline(store, baseline, models=["b"])
    lines = baseline.read_text().splitlines()
    old = before.decode().splitlines()
    assert lines[1] == old[1]
    assert lines[2] != old[2]
    assert check(store, baseline).exit_code == 0
    assert set(os.listdir(baseline.parent)) == {"baseline.json", "results.db"}


def test_an_incomplete_evaluation_is_refused_as_a_baseline(store: Store, baseline: Path) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhb."})
    with pytest.raises(CannotEvaluate, match="incomplete"):
        update_baseline(store, baseline)
    assert not baseline.exists()


def test_an_unknown_model_is_refused_as_a_baseline(store: Store, baseline: Path) -> None:
    with pytest.raises(CannotEvaluate, match="nothing is on record"):
        update_baseline(store, baseline)
    net(store, 0.6, checkpoint="old", model="resnet")
    with pytest.raises(UsageError, match="did you mean 'resnet'"):
        update_baseline(store, baseline, models=["resnt"])


def test_a_baseline_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="old")
    (tmp_path / "file").touch()
    with pytest.raises(CannotEvaluate, match="cannot be written"):
        update_baseline(store, tmp_path / "file" / "baseline.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CannotEvaluate, match="cannot be written"):
        update_baseline(store, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_missing_baseline_is_named(store: Store, baseline: Path) -> None:
    with pytest.raises(CannotEvaluate, match="no such baseline"):
        check(store, baseline)


def test_a_damaged_baseline_is_refused(store: Store, baseline: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    good = baseline.read_bytes()
    damages = [b"", b"{}", b"[]", b"null", good[:-20], b"\xff" + good, good.replace(b": 1.0", b": 0.0", 1)]
    damages += [good.replace(b"kwbench baseline", b"something"), good.replace(b'"format": 1', b'"format": 2')]
    for damaged in damages:
        assert damaged != good
        baseline.write_bytes(damaged)
        with pytest.raises(DamagedData, match="damaged"):
            check(store, baseline)


def test_a_damaged_record_leaves_the_baseline_unchanged(store: Store, baseline: Path, tmp_path: Path) -> None:
    net(store, 0.6, checkpoint="old")
    update_baseline(store, baseline)
    before = baseline.read_bytes()
    with closing(sqlite3.connect(tmp_path / "results.db")) as connection:
        connection.execute("DROP TABLE shards")
        connection.commit()
    with pytest.raises((CannotEvaluate, DamagedData)):
        update_baseline(store, baseline)
    assert baseline.read_bytes() == before
