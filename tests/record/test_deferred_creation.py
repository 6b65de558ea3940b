"""A database whose creation is deferred appears with its first use, and not before."""

from pathlib import Path

import pytest

from kwbench.errors import CannotEvaluate, DamagedData
from kwbench.record.store import Store
from support.records import specification


def test_the_file_appears_with_the_first_write(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    store = Store.open(str(path), create=True, deferred=True)
    assert list(tmp_path.iterdir()) == []
    evaluation = store.register(specification())
    store.close()
    assert list(tmp_path.iterdir()) == [path]
    assert [recorded.id for recorded in Store.open(str(path)).evaluations()] == [evaluation.id]


def test_two_commands_that_start_together_share_one_file(tmp_path: Path) -> None:
    path = str(tmp_path / "results.db")
    first, second = (Store.open(path, create=True, deferred=True) for _ in range(2))
    first.register(specification(model="a"))
    second.register(specification(model="b"))
    first.close()
    second.close()
    assert {evaluation.spec.model for evaluation in Store.open(path).evaluations()} == {"a", "b"}


def test_a_file_that_cannot_be_created_or_is_not_ours_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match="does not exist"):
        Store.open(str(tmp_path / "missing" / "results.db"), create=True, deferred=True)
    (tmp_path / "text.db").write_text("no database" * 20)
    with pytest.raises(DamagedData, match="not a kwbench database"):
        Store.open(str(tmp_path / "text.db"), create=True, deferred=True)
