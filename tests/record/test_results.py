"""The data frame of everything on record."""

from pathlib import Path

import numpy as np
import pytest

from kwbench.errors import CannotEvaluate
from kwbench.record.store import Store
from kwbench.verdict.frame import results
from support.records import deterministic, drawn, record, specification
from support.report_records import verdicts


def test_results_have_one_row_per_evaluation_and_attack(tmp_path: Path) -> None:
    db = str(tmp_path / "results.db")
    store = Store.open(db, create=True)
    evaluation = deterministic(store, {"clean": "whhh", "pgd": "whbh", "cw": "whb."})
    record(store, specification(model="random", n=2, stochastic=True), {"clean": drawn([9, 8], [90, 80])})
    store.close()
    frame = results(db)
    assert frame[["model", "attack"]].to_numpy().tolist() == [
        ["net", "clean"],
        ["net", "pgd"],
        ["net", "cw"],
        ["random", "clean"],
        ["random", "pgd"],
    ]
    pgd = frame[frame["attack"] == "pgd"].iloc[0]
    assert pgd["accuracy"] == 0.5
    assert pgd["accuracy_low"] < 0.5 < pgd["accuracy_high"]
    assert pgd["a_std"] == 0.75
    assert np.isnan(pgd["a_rob"])
    assert np.isnan(frame["accuracy"].iloc[2])
    assert pgd["held"] == 2
    assert pgd["run"] == evaluation.spec.identity
    assert frame["accuracy"].dtype == float
    assert frame.loc[frame["complete"], "model"].tolist() == []
    assert {"forwards", "backwards", "seconds", "eps_exact", "model_sha256", "data_sha256", "seed"} <= set(frame.columns)


def test_results_mark_evaluations_by_earlier_versions(tmp_path: Path) -> None:
    db = str(tmp_path / "results.db")
    store = Store.open(db, create=True)
    earlier = {"engine": None, "code_sha256": "0" * 64}
    deterministic(store, {"clean": "hh", "pgd": "hb"}, origin=earlier)
    deterministic(store, {"clean": "hh", "pgd": "hh"})
    store.close()
    frame = results(db)
    assert frame["earlier_version"].tolist() == [True, True, False, False]
    assert frame["run"].nunique() == 2
    assert frame["attack_run"].nunique() == 4


def test_an_empty_record_gives_an_empty_frame(tmp_path: Path) -> None:
    db = str(tmp_path / "results.db")
    Store.open(db, create=True).close()
    assert len(results(db)) == 0


def test_a_missing_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match="no such database"):
        results(str(tmp_path / "results.db"))


def test_results_have_verdicts_and_overestimates(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    verdicts(store)
    store.close()
    frame = results(str(tmp_path / "results.db")).drop_duplicates("model").set_index("model")
    assert frame["verdict"].to_dict() == {"sound": "confirmed", "masked": "overestimated", "odd": "inconclusive", "plain": ""}
    low, gap, high = (frame[name].to_dict() for name in ("overestimate_low", "overestimate", "overestimate_high"))
    assert gap["masked"] == pytest.approx(0.7)
    assert 0.6 < low["masked"] < gap["masked"] < high["masked"] < 0.8
    assert np.isnan(gap["plain"])
