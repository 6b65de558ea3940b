"""A data set that is added to the table is evaluated like those that come with kwbench."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kwbench.data import DATA_SETS, DataSetSpec, Split, Splits, dataset_names, load_dataset
from kwbench.data.digits import read_digits
from kwbench.errors import UsageError
from kwbench.evaluation.runner import evaluate
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.threat import ThreatModel
from support.small_models import digits
from support.small_registry import request, rows, write_registry


def read_reversed(folder: Path, download: bool) -> Splits:
    """The digits in reverse order."""
    test, train, validation = (Split(split.images[::-1], split.labels[::-1]) for split in read_digits(folder, download))
    return test, train, validation


REVERSED = DataSetSpec("reversed", read_reversed, (1, 8, 8), 10, ThreatModel.of("linf", "0.15"), revision=3)


@pytest.fixture(autouse=True)
def _reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_SETS, "reversed", REVERSED)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_registry(tmp_path_factory.mktemp("registry"))
    path.write_text(path.read_text().replace("  small:", "  reversed/small:"))
    return path


def evaluated(registry: Path, db: Path, model: str = "reversed/small", **options: Any) -> Evaluation:
    store = Store.open(str(db), create=True)
    try:
        return evaluate(request(registry, model, **options), store)
    finally:
        store.close()


def test_a_new_data_set_has_a_name() -> None:
    assert "reversed" in dataset_names()
    dataset = load_dataset("reversed")
    assert (dataset.name, dataset.shape, dataset.classes, dataset.reader_revision) == ("reversed", (1, 8, 8), 10, 3)
    with pytest.raises(UsageError, match="did you mean 'reversed'"):
        load_dataset("reverse")


def test_its_models_are_evaluated_on_it_at_its_threat_model(registry: Path, tmp_path: Path) -> None:
    evaluation = evaluated(registry, tmp_path / "results.db", n=24, eps=None)
    assert (evaluation.spec.dataset, evaluation.spec.n, str(evaluation.spec.threat)) == ("reversed", 24, "linf 0.15")
    outcomes = rows(tmp_path / "results.db", evaluation)
    last = digits().test.batch(range(359, 335, -1))
    assert tuple(row["sample"] for row in outcomes["clean"]) == last.samples
    clean, pgd = ([row["status"] for row in outcomes[label]] for label in ("clean", "pgd"))
    assert clean.count("held") > 20
    assert pgd.count("broken") > 5


def test_its_revision_identifies_runs(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = tmp_path / "results.db"
    first, same = (evaluated(registry, db, n=8) for _ in range(2))
    monkeypatch.setitem(DATA_SETS, "reversed", replace(REVERSED, revision=4))
    other = evaluated(registry, db, n=8)
    assert first.id == same.id != other.id
