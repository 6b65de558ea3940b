"""Tiles chosen on a GPU are kept for repeated runs, stand on record, and fill the batches of attacks."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor, nn

from kwbench.config.suite import suite_of
from kwbench.evaluation.assignment import assign, pending
from kwbench.evaluation.description import describe
from kwbench.evaluation.execution import evaluator
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.preparation.known_tiles import tiles_for
from kwbench.evaluation.request import Request
from kwbench.model.tiles import TileTrial
from support.small_models import first_images, trained_cnn, wrapped


class Rounding(nn.Module):
    """Logits that round differently at every batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, 20:30] * (1 + len(x) / 2**20)


def chosen(
    folder: Path, sha256: str = "a", images: int = 100, given: dict[str, int] | None = None
) -> tuple[dict[str, int], bool]:
    """Return the tiles that are chosen for a model, and whether any trial ran."""
    tried = []
    model = wrapped(Rounding(), tile=64)
    model.plan_passes(first_images(64).x)
    trial = TileTrial(images, 10**9, lambda: tried.append(1) or 0)  # type: ignore[func-returns-value]
    return tiles_for(model, sha256, ("bfloat16",), trial, folder, given)[0], bool(tried)


def test_a_choice_is_made_once_for_a_model_and_a_number_of_images(tmp_path: Path) -> None:
    first, tried = chosen(tmp_path)
    assert tried
    assert len(first) == 4
    assert chosen(tmp_path) == (first, False)
    assert chosen(tmp_path, images=128) == (first, False), "as many tiles hold them"
    for others in ({"sha256": "b"}, {"images": 1000}):
        assert chosen(tmp_path, **others)[1]


def test_tiles_that_another_evaluator_chose_come_before_those_of_this_machine(tmp_path: Path) -> None:
    first, _ = chosen(tmp_path)
    given = {name: 2 * tile for name, tile in first.items()}
    assert chosen(tmp_path, given=given) == (given, False)


@pytest.mark.parametrize("content", ["", "[1]", '{"float32 gradients": "many"}'])
def test_a_damaged_file_is_replaced(tmp_path: Path, content: str) -> None:
    first, _ = chosen(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert chosen(tmp_path)[1]
    assert chosen(tmp_path)[0].keys() == first.keys()


def test_where_nothing_can_be_written_each_run_chooses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert chosen(tmp_path / "file")[1]
    assert chosen(tmp_path / "file")[1]


def test_chosen_tiles_stand_on_record_and_fill_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("mine", suite_of(("pgd",)), module=trained_cnn(), n=300, batch_size=32)
    plain = LocalEvaluator(request)
    assert "tiles" not in plain.facts.identity
    assert not plain.facts.tiles
    tiles = {"float32 gradients": 256, "float32 predictions": 64}
    monkeypatch.setattr(evaluator, "_tiles", lambda *_: (tiles, {"float32 gradients": 256}))
    facts = LocalEvaluator(request).facts
    assert facts.identity["tiles"] == {"float32 gradients": 256}
    assert describe(request, facts).provenance["tiles"] == tiles
    assert describe(request, facts).identity != describe(request, plain.facts).identity

    def batches(tiles: dict[str, int]) -> list[int]:
        assignment = assign(replace(facts, tiles=tiles, workers=1), "pgd", list(range(300)), None, {}, {})
        return [len(rows) for rows in pending(replace(facts, tiles=tiles, workers=1), assignment, request)]

    assert max(batches({})) <= 64
    assert max(batches(tiles)) > 64
