"""Tiles on a GPU: the largest that still gains and fits, chosen once, with bits that no other size is taken for."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kwbench.model.tiles import TileTrial
from support.modules import Watched, input_gradient
from support.small_models import first_images, wrapped


def trial(at_most: int = 10_000, memory: int = 10**9, peak: Callable[[], int] = lambda: 0) -> TileTrial:
    return TileTrial(at_most, memory, peak)


def test_the_largest_size_that_gains_five_percent_an_image_is_chosen() -> None:
    # Fixed costs of a pass, and what an image adds.
    for fixed, expected in ((0.0, 64), (2.0, 512), (100.0, 4096)):

        def seconds(size: int, fixed: float = fixed) -> float:
            return fixed + size * 0.07

        assert trial().choose(seconds) == expected, fixed
    # A size that gains nothing does not hide a larger one that does.
    took = {64: 1.0, 128: 1.99, 256: 2.0}
    assert trial().choose(lambda size: took.get(size, size / 64)) == 256


def test_no_size_is_tried_that_would_be_padding() -> None:
    tried = []

    def seconds(size: int) -> float:
        tried.append(size)
        return 1.0

    assert trial(at_most=300).choose(seconds) == 512
    assert max(tried) == 512
    assert trial(at_most=3).choose(seconds) == 64


def test_what_does_not_fit_into_half_of_the_memory_is_not_chosen() -> None:
    held = 0

    def seconds(size: int) -> float:
        nonlocal held
        held = 1000 * size
        return 1.0

    assert trial(memory=1_100_000, peak=lambda: held).choose(seconds) == 512


def test_where_memory_runs_out_the_size_before_is_chosen() -> None:
    def seconds(size: int) -> float:
        if size > 256:
            raise torch.OutOfMemoryError("full")
        return 1.0

    assert trial().choose(seconds) == 256


class Clocked(nn.Module):
    """Logits that round as a function says, on a fake clock by which a pass takes as long for any number of images."""

    def __init__(self, rounding: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.rounding, self.now = rounding, 0.0
        monkeypatch.setattr(time, "process_time", lambda: self.now)

    def forward(self, x: Tensor) -> Tensor:
        self.now += 0.01
        return x.flatten(1)[:, 20:30] * (1 + self.rounding(len(x)) / 2**20)


def test_a_tile_whose_rows_have_other_bits_tells_runs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    images = first_images(300).x
    for rounding, differs in ((lambda _: 0, False), (lambda rows: rows, True)):
        model = wrapped(Clocked(rounding, monkeypatch), tile=64)
        model.plan_passes(images)
        tiles, telling = model.choose_tiles(("bfloat16",), {}, trial(at_most=300))
        names = {f"{precision} {kind}" for precision in ("float32", "bfloat16") for kind in ("gradients", "predictions")}
        assert tiles == dict.fromkeys(names, 512)
        assert telling == (tiles if differs else {})


def test_rows_pass_in_chosen_tiles_and_depend_on_themselves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images = first_images(300).x
    module = Watched(Clocked(lambda rows: rows, monkeypatch))
    model = wrapped(module, tile=64)
    model.plan_passes(images)
    model.choose_tiles((), {}, trial(at_most=300))
    module.sizes.clear()
    gradient = input_gradient(model, images)
    assert torch.equal(input_gradient(model, images[:3]), gradient[:3])
    with torch.no_grad():
        assert torch.equal(model(images)[:3], model(images[:3]))
    assert set(module.sizes) == {512}


def test_known_tiles_are_taken_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    images = first_images(200).x
    first, again = (wrapped(Clocked(lambda rows: rows, monkeypatch), tile=64) for _ in range(2))
    for model in (first, again):
        model.plan_passes(images)
    tiles, _ = first.choose_tiles((), {}, trial(at_most=200))

    def refuse() -> int:
        raise AssertionError("a trial ran")

    assert again.choose_tiles((), tiles, trial(peak=refuse))[0] == tiles
    assert torch.equal(again(images), first(images))


def test_a_random_module_keeps_its_tile() -> None:
    model = wrapped(nn.Flatten(), tile=64)
    model.stochastic = True
    assert model.choose_tiles((), {}, trial()) == ({}, {})


def test_where_memory_runs_out_a_chosen_tile_gives_way_to_smaller_batches_of_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = first_images(300).x
    module = Watched(Clocked(lambda _: 0, monkeypatch))
    model = wrapped(module, tile=64)
    model.plan_passes(images)
    model.choose_tiles((), {}, trial(at_most=300))
    gradient = input_gradient(model, images)
    largest = []
    while model.use_smaller_batches():
        module.sizes.clear()
        assert torch.equal(input_gradient(model, images), gradient)
        largest.append(max(module.sizes))
    assert largest == [256, 128, 64], "a run's tile is the smallest"
    assert model.largest_tile == 64


def test_a_chosen_tile_without_smaller_batches_of_the_same_bits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    images = first_images(300).x
    model = wrapped(Clocked(lambda rows: rows, monkeypatch), tile=64)
    model.plan_passes(images)
    model.choose_tiles((), {}, trial(at_most=300))
    assert not model.use_smaller_batches()
    assert model.largest_tile == 512
