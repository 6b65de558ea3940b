"""Batch sizes in which a module gives every row the bits that it gives the row in a tile."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Runs a pass over images (b, c, h, w); returns its outputs, each with one row for each image, and the seconds it took.
MeasurePass = Callable[[Tensor], tuple[list[Tensor], float]]

# Larger batches are tried while a pass is shorter than this many seconds. Above, fixed costs hardly matter.
_SHORT_PASS = 0.05
# A doubled batch is used if it takes less than this share of twice the time.
_WORTHWHILE = 0.95


@dataclass(frozen=True, slots=True)
class Batching:
    """The batch sizes that give equal bits, the largest first, and for each number of rows below the largest size the sizes
    that these rows take (`splits[rows]`; empty if there is only one size)."""

    sizes: list[int]
    splits: list[list[int]]

    def split(self, rows: int) -> list[int]:
        """The batch sizes in which this many rows pass; the last may exceed the rows that remain."""
        full, rest = divmod(rows, self.sizes[0])
        return [self.sizes[0]] * full + (self.splits[rest] if self.splits else [self.sizes[0]] if rest else [])

    def at_most(self, size: int) -> "Batching":
        """Return the batching without the sizes above `size`, which is one of them; rows then pass with as little padding as
        possible."""
        if size == self.sizes[0]:
            return self
        sizes = [smaller for smaller in self.sizes if smaller <= size]
        return Batching(sizes, cheapest_splits(sizes, sizes[-1], sizes[0])) if len(sizes) > 1 else tiles_only(size)


def tiles_only(tile: int) -> Batching:
    """The batching to use where nothing is known of other sizes."""
    return Batching([tile], [])


def measure_batching(measure_pass: MeasurePass, probe: Tensor, *, larger: bool) -> Batching:
    """Find the batch sizes by trial on a tile of images (tile, c, h, w).

    The shape of a batch decides which kernel computes it. Equal bits on these images therefore mean the same order of
    summation on any images. Smaller sizes are halvings of the tile, which need less padding. Larger sizes, tried if `larger`,
    are doublings up to four tiles, as long as they take less time per row: small networks spend much of their time on costs
    that do not depend on the number of rows.
    """
    tile = len(probe)
    expected, _ = measure_pass(probe)
    smaller = _smaller_sizes(measure_pass, probe, expected)
    seconds = {tile: _prepared_seconds(measure_pass, probe)}
    if larger:
        seconds |= _larger_sizes(measure_pass, probe, expected, seconds[tile])
    sizes = [*sorted(seconds, reverse=True), *smaller]
    if len(sizes) == 1:
        return tiles_only(tile)
    return Batching(sizes, cheapest_splits(sizes, _prepared_seconds(measure_pass, probe[: sizes[-1]]), seconds[sizes[0]]))


def _smaller_sizes(measure_pass: MeasurePass, probe: Tensor, expected: list[Tensor]) -> list[int]:
    sizes, size = [], len(probe)
    while size > 1:
        size //= 2
        # In reverse order, so that each row has another position than in the tile.
        results, _ = measure_pass(probe.flip(0)[:size])
        if all(torch.equal(tile.flip(0)[:size], part) for tile, part in zip(expected, results, strict=True)):
            sizes.append(size)
    return sizes


def _larger_sizes(measure_pass: MeasurePass, probe: Tensor, expected: list[Tensor], seconds: float) -> dict[int, float]:
    """Return the larger sizes that are worth it, with the seconds that they take."""
    # Different images beside those of the probe, so that a module whose rows depend on their neighbours fails the comparison.
    tiles = [probe, probe / 2, 1 - probe, 1 - probe / 2]
    tile_results = [expected]
    accepted: dict[int, float] = {}
    while len(accepted) < 2 and seconds < _SHORT_PASS:
        group = tiles[: 2 ** (len(accepted) + 1)]
        images = torch.cat(group).flip(0)
        try:
            tile_results += [measure_pass(tile)[0] for tile in group[len(tile_results) :]]
            results, took = measure_pass(images)
            took = min(took, measure_pass(images)[1])
        except Exception:  # noqa: BLE001 - foreign code may not accept a larger batch, or memory may not suffice
            break
        equal = all(torch.equal(torch.cat(parts).flip(0), whole) for *parts, whole in zip(*tile_results, results, strict=True))
        if not equal or took > 2 * _WORTHWHILE * seconds:
            break
        accepted[len(images)] = seconds = took
    return accepted


def _prepared_seconds(measure_pass: MeasurePass, images: Tensor) -> float:
    """The seconds of a pass over images of a shape that passed before: the first pass of a shape includes its preparation."""
    took = measure_pass(images)[1]
    return took if took > _SHORT_PASS else min(took, measure_pass(images)[1])


def cheapest_splits(sizes: list[int], smallest_seconds: float, largest_seconds: float) -> list[list[int]]:
    """Return, for each number of rows from 0 to the largest size, the sizes that together hold them in the least time.

    The seconds of a size are interpolated linearly between those of the smallest and of the largest size.
    """
    largest, smallest = max(sizes), min(sizes)
    seconds_per_row = max(0.0, largest_seconds - smallest_seconds) / (largest - smallest)
    seconds = {size: smallest_seconds + (size - smallest) * seconds_per_row for size in sizes}
    splits: list[list[int]] = [[]]
    for rows in range(1, largest + 1):
        candidates = [[size, *splits[max(0, rows - size)]] for size in sizes]
        splits.append(min(candidates, key=lambda split: sum(seconds[size] for size in split)))
    return splits
