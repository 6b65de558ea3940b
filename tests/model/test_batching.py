"""Batch sizes: which give the bits of a tile, and which of them rows take."""

from collections.abc import Callable

import torch
from torch import Tensor

from kwbench.model.batching import cheapest_splits, measure_batching, tiles_only
from support.small_models import first_images

TILE = first_images(16).x


def constant_time(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[list[Tensor], float]]:
    """A pass that takes the same time for any number of images."""

    def run_pass(images: Tensor) -> tuple[list[Tensor], float]:
        return [function(images)], 0.01

    return run_pass


def test_larger_batches_are_doublings_up_to_four_tiles_and_only_if_wanted() -> None:
    run_pass = constant_time(lambda x: x.flatten(1) * 2)
    assert measure_batching(run_pass, TILE, larger=True).sizes == [64, 32, 16, 8, 4, 2, 1]
    assert measure_batching(run_pass, TILE, larger=False).sizes == [16, 8, 4, 2, 1]


def test_a_module_whose_rows_depend_on_each_other_gets_no_larger_batch() -> None:
    """A mean is the same over a tile and over copies of it."""
    assert torch.equal(TILE.mean(dim=0), torch.cat([TILE, TILE]).mean(dim=0))
    for company in (lambda x: x - x.mean(dim=0), lambda x: x / x.amax()):
        assert max(measure_batching(constant_time(company), TILE, larger=True).sizes) == 16
    alone = first_images(1).x
    assert measure_batching(constant_time(lambda x: x - x.mean(dim=0)), alone, larger=True) == tiles_only(1)


def test_failing_larger_batches_leave_the_smaller_ones() -> None:
    def few(images: Tensor) -> Tensor:
        if len(images) > 16:
            raise torch.OutOfMemoryError("full")
        return images.flatten(1)

    assert measure_batching(constant_time(few), TILE, larger=True).sizes == [16, 8, 4, 2, 1]


def test_larger_batches_that_are_not_faster_per_row_are_not_used() -> None:
    def run_pass(images: Tensor) -> tuple[list[Tensor], float]:
        return [images], len(images) / 1000

    assert measure_batching(run_pass, TILE, larger=True).sizes[0] == 16


def preparing(seconds: Callable[[int], float], first: Callable[[int], float]) -> Callable[[Tensor], tuple[list[Tensor], float]]:
    """A pass that takes longer for the first batch of every shape."""
    seen: set[int] = set()

    def run_pass(images: Tensor) -> tuple[list[Tensor], float]:
        prepared = len(images) in seen
        seen.add(len(images))
        return [images], (seconds if prepared else first)(len(images))

    return run_pass


def test_the_first_pass_of_a_shape_does_not_count_as_its_time() -> None:
    alike = preparing(lambda _: 0.02, lambda _: 1.0)
    assert measure_batching(alike, TILE, larger=False).splits[9] == [16]
    apart = preparing(lambda rows: rows / 1000, lambda _: 1.0)
    assert measure_batching(apart, TILE, larger=False).splits[9] == [8, 1]


def test_larger_batches_are_compared_by_their_time_after_the_first_pass() -> None:
    took = {16: 0.010, 32: 0.011, 64: 0.034}
    assert measure_batching(preparing(lambda rows: took.get(rows, 0.01), lambda _: 1.0), TILE, larger=True).sizes[0] == 32
    # Even a fast first pass is not the time with which other sizes are compared.
    first = took | {32: 0.0185}
    assert (
        measure_batching(preparing(lambda n: took.get(n, 0.01), lambda n: first.get(n, 0.01)), TILE, larger=True).sizes[0] == 32
    )


def test_rows_take_the_batches_that_need_the_least_time() -> None:
    # Every pass costs nearly as much as a tile.
    fixed_cost = cheapest_splits([64, 32, 16, 8, 4], smallest_seconds=4.0, largest_seconds=5.0)
    assert [fixed_cost[rows] for rows in (0, 1, 5, 33, 64)] == [[], [4], [8], [64], [64]]
    # Every row costs the same.
    cost_by_row = cheapest_splits([64, 32, 16, 8, 4], smallest_seconds=1.0, largest_seconds=16.0)
    assert all(sum(cost_by_row[rows]) == -(-rows // 4) * 4 for rows in range(65))


def test_full_batches_come_first_and_the_rest_takes_the_cheapest_split() -> None:
    batching = measure_batching(constant_time(lambda x: x.flatten(1)), TILE, larger=True)
    assert batching.split(0) == []
    assert batching.split(130)[:2] == [64, 64]
    for rows in range(200):
        assert rows <= sum(batching.split(rows)) < rows + 64
    assert tiles_only(16).split(33) == [16, 16, 16]
