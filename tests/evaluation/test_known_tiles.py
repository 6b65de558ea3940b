"""Tiles chosen on a GPU are kept for repeated runs, stand on record, and fill the batches of attacks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kwbench.config.suite import suite_of
from kwbench.errors import CannotEvaluate
from kwbench.evaluation.assignment import assign, pending
from kwbench.evaluation.description import describe
from kwbench.evaluation.execution import evaluator
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.execution.tasks import JudgeAttack, JudgeClean
from kwbench.evaluation.preparation.known_tiles import tiles_for
from kwbench.evaluation.preparation.prepare import prepare
from kwbench.evaluation.request import Request
from kwbench.model import Model
from kwbench.model.tiles import TileTrial
from support.small_models import first_images, trained_cnn, wrapped
from support.small_registry import fast_suite


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


class Memory(nn.Module):
    """The small network image by image, in a memory that holds so many; perhaps with logits that round by the batch size."""

    def __init__(self, rounds: bool) -> None:
        super().__init__()
        self.network, self.rounds, self.holds = trained_cnn(), rounds, 10_000

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.holds:
            raise torch.OutOfMemoryError("full")
        logits = torch.cat([self.network(image) for image in x.split(1)])  # type: ignore[no-untyped-call]
        return logits * (1 + len(x) / 2**20) if self.rounds else logits


def in_large_tiles(rounds: bool) -> tuple[Memory, LocalEvaluator]:
    module = Memory(rounds)
    suite = fast_suite("pgd", settings=("pgd.steps=2",))
    local = LocalEvaluator(Request("mine", suite, module=module, dataset="digits", n=200, eps="0.1", tile=32, threads=1))
    chosen = {"float32 gradients": 128, "float32 predictions": 128}
    assert local.model.choose_tiles((), chosen, TileTrial(200, 10**9, lambda: 0))[0] == chosen
    return module, local


def test_a_run_goes_on_with_the_same_rows_where_memory_no_longer_holds_the_chosen_tile() -> None:
    module, local = in_large_tiles(rounds=False)
    rows, outcomes = range(200), []
    for holds in (10_000, 40):
        module.holds = holds
        clean = local.execute(JudgeClean(rows))
        attacked = local.execute(JudgeAttack("pgd", rows, clean, None))
        outcomes.append([replace(outcome, seconds=0.0) for outcome in (*clean, *attacked)])
    assert outcomes[0] == outcomes[1]
    assert local.model.batch_sizes(gradients=True)[0] == 32


def test_where_no_smaller_batch_has_the_same_bits_the_remedy_is_named() -> None:
    module, local = in_large_tiles(rounds=True)
    module.holds = 40
    with pytest.raises(CannotEvaluate, match=r"not hold 128 samples at once, the tile that a trial chose here; .* --tile 64$"):
        local.execute(JudgeClean(range(200)))


def test_a_tile_of_64_that_is_asked_for_is_not_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluator, "cache_folder", lambda name: tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")
    monkeypatch.setattr(TileTrial, "on_gpu", lambda device, at_most: TileTrial(at_most, 10**9, lambda: 0))
    for tile, chooses in ((None, True), (64, False), (32, False)):
        request = Request("mine", suite_of(("pgd",)), module=Rounding(), dataset="digits", n=100, tile=tile, device="cpu")
        prepared = prepare(request)
        assert prepared.model.tile == request.tile_size == (tile or 64)
        assert evaluator._tiles(request, prepared, {}) == ({}, {}), "a CPU chooses nothing"
        on_gpu = replace(prepared, model=OnGpu(prepared.model))  # type: ignore[arg-type]
        assert bool(evaluator._tiles(request, on_gpu, {})[0]) is chooses


class OnGpu:
    """A model that says that it is on a GPU."""

    def __init__(self, model: Model) -> None:
        self.model, self.device = model, torch.device("cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


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
