"""Adversarial images leave the record as arrays."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kwbench.errors import CannotEvaluate, UsageError
from kwbench.record.export import adversarial_arrays, find_evaluation
from kwbench.record.store import Store
from support.records import deterministic, record, rows, specification
from support.report_records import pictured


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    pictured(opened)
    yield opened
    opened.close()


def test_the_worst_case_of_each_sample_is_exported_with_its_label_and_attack(store: Store) -> None:
    arrays = adversarial_arrays(store, find_evaluation(store, "second"))
    assert arrays["index"].tolist() == [1, 10]
    assert arrays["attack"].tolist() == ["fgsm", "fgsm"]
    assert arrays["x"].shape == (2, 3, 12, 12)
    assert arrays["x"].dtype == np.float32
    assert 0 <= arrays["x"].min() <= arrays["x"].max() <= 1


def test_an_image_kept_in_full_precedes_the_example(store: Store) -> None:
    image = np.full((3, 12, 12), 0.25, dtype=np.float32)
    summary = find_evaluation(store, "first")
    run = summary.evaluation.attack_runs["fgsm"]
    store.append(run, [replace(store.outcomes(run)[0], image=image)])
    assert (adversarial_arrays(store, summary)["x"][0] == image).all()


def test_an_evaluation_is_found_by_its_first_digits_or_by_its_model(store: Store) -> None:
    summary = find_evaluation(store, "first")
    assert find_evaluation(store, summary.evaluation.spec.identity[:10]).model == "first"
    with pytest.raises(UsageError, match="neither the beginning of a run on record nor a model; did you mean 'first'"):
        find_evaluation(store, "frist")


def test_without_images_the_way_to_get_them_is_named(store: Store) -> None:
    deterministic(store, {"clean": "hh", "pgd": "hb"}, model="bare")
    with pytest.raises(CannotEvaluate, match=r"bare: no adversarial images .* --keep-adversarials"):
        adversarial_arrays(store, find_evaluation(store, "bare"))
    record(store, specification("none"), {"clean": rows("hhhh")})
    with pytest.raises(CannotEvaluate, match="none: no adversarial images"):
        adversarial_arrays(store, find_evaluation(store, "none"))
