"""Adversarial images that are kept confirm their rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kwbench import judge
from kwbench.attacks import ATTACKS
from kwbench.config.registry import read_registry
from kwbench.errors import CannotEvaluate
from kwbench.evaluation.request import Request
from kwbench.judge import SELECTION_DRAWS
from kwbench.networks.entries import load_entry
from kwbench.outcome import Outcome
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.threat import TOLERANCE
from support.cascades import Corners, changed_copy, falling_request, run, staged, suite, summary_of
from support.small_models import digits
from support.small_registry import request, write_registry
from support.small_registry import rows as recorded


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(autouse=True)
def _corners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "corners", Corners)


@pytest.fixture(scope="module", params=["small", "small-random"])
def whole(request: pytest.FixtureRequest, registry: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model, and the record of its cascade, run without interruption, with images."""
    db = tmp_path_factory.mktemp(request.param) / "results.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ATTACKS, "corners", Corners)
        run(falling_request(registry, request.param, keep_adversarials=True), db)
    return request.param, db


class TestKeptImages:
    @pytest.mark.parametrize("cascade", [True, False])
    def test_every_success_is_confirmed_from_the_stored_image(
        self, whole: tuple[str, Path], registry: Path, tmp_path: Path, cascade: bool
    ) -> None:
        model, db = whole
        if not cascade:
            db = tmp_path / "results.db"
            plain = suite(staged("fgsm"), staged("pgd", steps=3), cascade=False)
            run(falling_request(registry, model, suite=plain, keep_adversarials=True), db)
        evaluation = summary_of(db).evaluation
        network = _fresh(registry, model)
        clean = {outcome.sample: outcome.selection_correct for outcome in _outcomes(db, evaluation)["clean"]}
        images, confirmed = _images(db, evaluation), 0
        for label, outcomes in _outcomes(db, evaluation).items():
            successes = [outcome for outcome in outcomes if _success(outcome, clean)] if label != "clean" else []
            assert images[label].keys() == {outcome.sample for outcome in successes}
            for outcome in successes:
                image = images[label][outcome.sample]
                assert image.dtype == np.float32
                x = digits().test.batch([outcome.index]).x[0].numpy()
                assert np.abs(image.astype(np.float64) - x.astype(np.float64)).max() <= 0.2 + TOLERANCE
                assert 0 <= image.min() <= image.max() <= 1
                predictions = [_predict(network, image) for _ in range(1 if model == "small" else 100)]
                right = np.mean([prediction == outcome.label for prediction in predictions])
                if model == "small":
                    assert right == 0
                else:
                    # Binomial: exceeded with a probability of 1e-9.
                    assert abs(right - outcome.fresh_correct / outcome.fresh_draws) < 0.45
                confirmed += 1
        assert confirmed > 20

    def test_missing_images_are_added_and_the_rows_stay(self, whole: tuple[str, Path], registry: Path, tmp_path: Path) -> None:
        model, db = whole
        ours = changed_copy(db, tmp_path, "DELETE FROM adversarials WHERE attack_run != 2 OR sample > '8'")
        evaluation = run(falling_request(registry, model, keep_adversarials=True), ours)
        assert recorded(ours, evaluation) == recorded(db)
        added, kept = _images(ours, evaluation), _images(db, summary_of(db).evaluation)
        assert {label: list(images) for label, images in added.items()} == {
            label: list(images) for label, images in kept.items()
        }
        assert all((added[label][sample] == kept[label][sample]).all() for label in kept for sample in kept[label])

    def test_an_image_that_contradicts_its_row_is_refused(
        self, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        db = tmp_path / "results.db"
        what = request(registry, suite=suite(staged("fgsm")), n=32, eps="0.15")
        run(what, db)
        monkeypatch.setattr(judge, "_fails", lambda logits, _: torch.zeros(len(logits), dtype=torch.bool))
        with pytest.raises(CannotEvaluate, match="attacked again to keep its image, has status held, on record is broken"):
            run(replace(what, keep_adversarials=True), db)

    def test_images_of_a_model_from_a_users_file_can_be_kept(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        file.write_text(
            "import torch\n"
            "def make():\n"
            "    torch.manual_seed(0)\n"
            "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        )
        what = Request(f"{file}:make", suite(staged("fgsm")), dataset="digits", n=64, eps="0.1", keep_adversarials=True)
        evaluation = run(what, tmp_path / "results.db")
        broken = {row.sample for row in _outcomes(tmp_path / "results.db", evaluation)["fgsm"] if row.status == "broken"}
        assert broken
        assert _images(tmp_path / "results.db", evaluation)["fgsm"].keys() == broken


class TestExamples:
    def test_the_worst_cases_of_the_first_broken_samples_are_stored_and_still_break(
        self, registry: Path, tmp_path: Path
    ) -> None:
        for model in ("small", "small-random"):
            db = tmp_path / f"{model}.db"
            run(falling_request(registry, model, examples=12), db)
            summary = summary_of(db)
            assert summary.clean_values is not None
            assert summary.robust_values is not None
            store = Store.open(str(db))
            kept = {label: store.examples(number) for label, number in summary.evaluation.attack_runs.items()}
            rows = {row.sample: row for number in summary.evaluation.attack_runs.values() for row in store.outcomes(number)}
            store.close()
            network = _fresh(registry, model)
            broken = [
                int(position)
                for position, worst, before, after in zip(
                    summary.index, summary.worst, summary.clean_values, summary.robust_values, strict=True
                )
                if worst != "clean" and before > 0.5 > after
            ]
            stored = {rows[sample].index for examples in kept.values() for sample in examples}
            assert set(broken[:12]) <= stored
            assert kept["clean"] == {}
            for examples in kept.values():
                for sample, example in examples.items():
                    x = digits().test.batch([rows[sample].index]).x[0].numpy()
                    assert np.array_equal(example.clean, x)
                    moved = np.abs(example.adversarial.astype(np.float64) - x.astype(np.float64)).max()
                    assert moved <= 0.2 + TOLERANCE
                    predictions = [_predict(network, example.adversarial) for _ in range(1 if model == "small" else 60)]
                    assert np.mean([prediction == rows[sample].label for prediction in predictions]) < 0.75
                    assert example.after[0][1] >= example.after[-1][1]
            if model == "small":
                assert len(stored) < len(broken)
                assert any(example.residual is not None for examples in kept.values() for example in examples.values())

    def test_examples_change_no_row(self, whole: tuple[str, Path], registry: Path, tmp_path: Path) -> None:
        model, db = whole
        for examples in (0, 200):
            ours = tmp_path / f"{examples}.db"
            evaluation = run(falling_request(registry, model, examples=examples), ours)
            assert recorded(ours, evaluation) == recorded(db)


def _success(outcome: Outcome, best: dict[str, int]) -> bool:
    """Return whether a row is a success; `best` holds the fewest right selection draws of a stochastic model so far."""
    if not outcome.selection_draws:
        return outcome.status == "broken"
    below = outcome.selection_draws == SELECTION_DRAWS and outcome.selection_correct < best[outcome.sample]
    if below:
        best[outcome.sample] = outcome.selection_correct
    return below


def _fresh(registry: Path, model: str) -> torch.nn.Module:
    registered = read_registry(registry)
    name, entry = registered.find(model)
    return load_entry(registered, name, entry, digits()).module.eval()


def _predict(network: torch.nn.Module, image: Any) -> int:
    with torch.no_grad():
        return int(network(torch.from_numpy(image)[None]).argmax())


def _outcomes(db: Path, evaluation: Evaluation) -> dict[str, list[Outcome]]:
    store = Store.open(str(db))
    try:
        return {label: store.outcomes(run) for label, run in evaluation.attack_runs.items()}
    finally:
        store.close()


def _images(db: Path, evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    store = Store.open(str(db))
    try:
        return {label: store.adversarials(run) for label, run in evaluation.attack_runs.items()}
    finally:
        store.close()
