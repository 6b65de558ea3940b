"""Rows on record are reused only for a model that still gives the same answers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kwbench
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.fingerprint import agree, fingerprint, told_apart
from kwbench.record.store import Store
from support.records import record, specification
from support.small_models import Noisy, first_images, trained_cnn, wrapped
from support.small_registry import count, request, write_registry


class Switched(nn.Module):
    """A network that reads a number from a file in every pass, which nothing but its answers shows."""

    def __init__(self, file: Path, use: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.network, self.file, self.use = trained_cnn(), file, use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.network(x), float(self.file.read_text()))


@pytest.mark.parametrize(
    ("use", "before", "after"),
    [
        (lambda logits, number: number * logits, "1", "-1"),
        (lambda logits, number: logits.roll(int(number), dims=1), "0", "3"),
    ],
    ids=["sign", "order of the classes"],
)
def test_a_model_that_answers_otherwise_is_evaluated_anew_and_its_old_rows_return_with_its_old_answers(
    tmp_path: Path, use: Callable[[Tensor, float], Tensor], before: str, after: str
) -> None:
    file, db, batch = tmp_path / "number", tmp_path / "results.db", first_images(8)
    results: dict[str, list[tuple[float, int, int]]] = {}
    for number in (before, after, after, before):
        file.write_text(number)
        result = kwbench.evaluate(Switched(file, use), batch.x, batch.y, attacks="fgsm", eps=0.02, db=db, tile=16)
        assert result.a_std is not None
        results.setdefault(number, []).append((result.a_std.value, result.summary.evaluation.id, len(result.notes)))
    assert results[before][0] == results[before][1]
    assert results[after][0] == results[after][1]
    assert results[before][0][2] == 0
    assert results[after][0][2] == 1
    assert results[after][0][0] < results[before][0][0]
    assert count(db, "evaluations") == 2


def test_a_fingerprint_does_not_depend_on_the_tile_and_is_small() -> None:
    images = first_images(32).x
    one, other = (fingerprint(wrapped(trained_cnn(), tile=tile), images) for tile in (4, 64))
    assert one is not None
    assert other is not None
    assert agree(one, other)
    wide = wrapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 1000)), classes=1000)
    assert [len(row) for row in fingerprint(wide, images) or []] == [32] * 16


def test_a_random_model_has_a_fingerprint_if_its_randomness_can_be_seeded() -> None:
    images = first_images(16).x
    seeded = wrapped(Noisy(trained_cnn(), 0.1))
    seeded.measure_randomness(images)
    assert seeded.stochastic
    assert fingerprint(seeded, images) is not None

    class OwnGenerator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.generator = trained_cnn(), torch.Generator()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(x + 0.1 * torch.randn(x.shape, generator=self.generator))
            return logits

    own = wrapped(OwnGenerator())
    own.measure_randomness(images)
    assert fingerprint(own, images) is None


def test_rounding_and_a_single_flipped_image_are_no_difference() -> None:
    answers: list[list[float | None]] = [[float(row), 2.0, None] for row in range(16)]
    rounded = [[value and value * (1 + 1e-5) for value in row] for row in answers]
    assert agree(answers, rounded)
    flipped = [[9.0, 9.0, None], *rounded[1:]]
    assert agree(answers, flipped)
    assert not agree(answers, [[-(value or 0), 2.0, None] for value, *_ in answers])
    assert not agree(answers, [[value, 2.0, 0.0] for value, *_ in answers])
    assert not agree(answers, answers[:8])


def test_an_evaluation_without_a_fingerprint_stays_valid(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "results.db"), create=True)
    measured = LocalEvaluator(request(write_registry(tmp_path), n=16)).facts
    assert measured.answers is not None
    old = record(store, specification(), {})
    facts = replace(measured, identity=dict(old.origin))
    assert told_apart(facts, store) == facts
    record(store, specification(suite="other", provenance={"answers": facts.answers}), {})
    assert told_apart(facts, store) == facts
    others = replace(facts, answers=[[-(value or 0.0) for value in row] for row in measured.answers])
    assert told_apart(others, store).identity["answers"] == 1
    store.close()
