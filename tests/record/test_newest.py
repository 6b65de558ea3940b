"""The newest evaluation goes by the order of writing, whatever the clocks say."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.regression.baseline import update_baseline
from kwbench.regression.gate import Decision, check
from kwbench.report.leaderboard import boards
from support.records import deterministic


class _Clock:
    """A clock that shows the given hours one after the other, and then stands still."""

    def __init__(self, *hours: float) -> None:
        self._times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in hours]

    def now(self, _: tzinfo | None = None) -> datetime:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "results.db"), create=True)


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_to(*hours: float) -> None:
        for module in ("evaluations", "experiments"):
            monkeypatch.setattr(f"kwbench.record.database.{module}.datetime", _Clock(*hours))

    return set_to


def _strong(store: Store) -> Any:
    return deterministic(store, {"clean": "h" * 40, "pgd": "h" * 40}, checkpoint="strong")


def _weak(store: Store) -> Any:
    return deterministic(store, {"clean": "h" * 40, "pgd": "b" * 30 + "h" * 10}, checkpoint="weak")


@pytest.mark.parametrize("hours", [(24, 0), (0, 0), (0, -24), (0, 24)], ids=["once ahead", "equal", "set back", "right"])
def test_a_model_that_fell_is_a_regression_under_every_clock(
    store: Store, set_clock: Callable[..., None], tmp_path: Path, hours: tuple[float, ...]
) -> None:
    set_clock(*hours)
    _strong(store)
    update_baseline(store, tmp_path / "baseline.json")
    weak = _weak(store)
    (result,) = check(store, tmp_path / "baseline.json").models
    assert (result.decision, result.run) == (Decision.REGRESSION, weak.spec.identity)
    ((row,),) = (board.rows for board in boards(summaries(store)))
    assert row.summary.evaluation.id == weak.id


def test_the_evaluation_asked_for_last_is_the_newest_also_if_nothing_was_left_to_do(
    store: Store, set_clock: Callable[..., None], tmp_path: Path
) -> None:
    set_clock(3, 2, 1)
    _weak(store)
    update_baseline(store, tmp_path / "baseline.json")
    _strong(store)
    _weak(store)  # resumed, and complete already
    assert check(store, tmp_path / "baseline.json").models[0].decision is Decision.FINE
    assert max(store.evaluations(), key=lambda evaluation: evaluation.recency).id == 1


def test_experiments_are_in_the_order_of_writing(store: Store, set_clock: Callable[..., None]) -> None:
    set_clock(3, 2, 1)
    for identity in ("first", "second", "first"):
        store.record_experiment(Measurement(identity, "landscape", "net", "digits", {}, {}, {"loss": np.zeros(1)}))
    assert [measurement.identity for measurement in store.experiments()] == ["second", "first"]
