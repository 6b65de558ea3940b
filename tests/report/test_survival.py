"""The curves of accuracy against passes."""

from dataclasses import replace
from pathlib import Path

import pytest

from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.report.html.survival import survival_curves
from support.records import deterministic, drawn, record, specification


def curves(store: Store) -> dict[str, tuple[list[int], list[float]]]:
    """Return the passes and accuracies of each curve of the only evaluation."""
    (summary,) = summaries(store)
    runs = summary.evaluation.attack_runs
    outcomes = {label: arrays for label, run in runs.items() if len(arrays := store.outcome_arrays(run))}
    return {name: (passes, values) for name, passes, values in survival_curves(outcomes, summary)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "results.db"), create=True)


def test_a_curve_falls_from_the_clean_accuracy_to_that_under_the_attack(store: Store) -> None:
    deterministic(store, {"clean": "hhhw", "fgsm": "bhhw", "pgd": "bbhw"})
    shown = curves(store)
    assert list(shown) == ["fgsm", "pgd"]
    for name, last in (("fgsm", 50.0), ("pgd", 25.0)):
        passes, accuracies = shown[name]
        assert (accuracies[0], accuracies[-1]) == (75.0, last)
        assert passes == sorted(passes)
    store.close()


def test_a_stochastic_model_falls_at_the_end_of_each_attack_to_its_accuracy(store: Store) -> None:
    attacked = [replace(outcome, forwards=40) for outcome in drawn([50, 10], [50, 10])]
    record(store, specification(n=2, stochastic=True), {"clean": drawn([90, 70], [90, 70]), "pgd": attacked})
    shown = curves(store)
    passes, accuracies = shown["pgd"]
    assert accuracies == pytest.approx([80.0, 30.0])
    assert passes == [1, 40]
    store.close()


def test_a_record_without_passes_has_no_curve(store: Store) -> None:
    deterministic(store, {"clean": "hhhh", "pgd": "hhhh"})
    (summary,) = summaries(store)
    assert survival_curves({}, summary) == []
    store.close()
