"""In which batches rows may pass: those in which a module gives them the very bits that it gives them in a tile."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# What a pass over images (b, c, h, w) gives, each with a row for each of them, and the seconds that it took.
Look = Callable[[Tensor], tuple[list[Tensor], float]]

# Twice as many rows pass at once where as many as before take less than so many seconds, and twice as many less than this share
# of twice the time.
_SHORT, _QUICKER = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class Batching:
    """In which batches the bits of a row are the same, the largest first; for each number of rows up to the largest, those that
    they are to take."""

    sizes: list[int]
    plans: list[list[int]]

    def of(self, rows: int) -> list[int]:
        """The batches that so many rows take; the last may be longer than what is left."""
        full, rest = divmod(rows, self.sizes[0])
        return [self.sizes[0]] * full + (self.plans[rest] if self.plans else [self.sizes[0]] if rest else [])


def tiles_only(tile: int) -> Batching:
    """Where nothing is known of other batches."""
    return Batching([tile], [])


def measured(look: Look, probe: Tensor, *, larger: bool) -> Batching:
    """By trial, on a tile of images.

    Which kernel computes a batch goes by its shape, so equal bits on these images mean the same order of summation on any.
    Smaller sizes are halvings of the tile, which pad less. Larger ones, if wanted, are doublings up to four tiles, as long as a
    row takes less time in them: small networks spend much of it on what is the same for any number of rows.
    """
    tile = len(probe)
    whole, _ = look(probe)
    smaller = _smaller(look, probe, whole)
    seconds = {tile: _seconds(look, probe)}
    if larger:
        seconds |= _larger(look, probe, whole, seconds[tile])
    sizes = [*sorted(seconds, reverse=True), *smaller]
    if len(sizes) == 1:
        return tiles_only(tile)
    return Batching(sizes, cheapest(sizes, _seconds(look, probe[: sizes[-1]]), seconds[sizes[0]]))


def _smaller(look: Look, probe: Tensor, whole: list[Tensor]) -> list[int]:
    sizes, few = [], len(probe)
    while few > 1:
        few //= 2
        # Turned round, so that each row stands elsewhere than in the tile.
        part, _ = look(probe.flip(0)[:few])
        if all(torch.equal(one.flip(0)[:few], other) for one, other in zip(whole, part, strict=True)):
            sizes.append(few)
    return sizes


def _larger(look: Look, probe: Tensor, whole: list[Tensor], seconds: float) -> dict[int, float]:
    """The seconds that those take that are worth it."""
    # Other images beside those of the tile: what depends on the company of a row is not to agree.
    tiles = [probe, probe / 2, 1 - probe, 1 - probe / 2]
    apart = [whole]
    found: dict[int, float] = {}
    while len(found) < 2 and seconds < _SHORT:
        some = tiles[: 2 ** (len(found) + 1)]
        images = torch.cat(some).flip(0)
        try:
            apart += [look(each)[0] for each in some[len(apart) :]]
            together, slower = look(images)
            slower = min(slower, look(images)[1])
        except Exception:  # noqa: BLE001 - foreign code may take no larger batch, or memory may not
            break
        agrees = all(torch.equal(torch.cat(each).flip(0), rows) for *each, rows in zip(*apart, together, strict=True))
        if not agrees or slower > 2 * _QUICKER * seconds:
            break
        found[len(images)] = seconds = slower
    return found


def _seconds(look: Look, images: Tensor) -> float:
    """Of images that were looked at before: the first pass of a shape also prepares it."""
    took = look(images)[1]
    return took if took > _SHORT else min(took, look(images)[1])


def cheapest(sizes: list[int], quick: float, slow: float) -> list[list[int]]:
    """For each number of rows from 0 to the largest of the sizes, those that together hold them in the least time.

    The smallest takes `quick` seconds, the largest `slow`, those between as much more as they hold more.
    """
    largest, smallest = max(sizes), min(sizes)
    each = max(0.0, slow - quick) / (largest - smallest)
    seconds = {size: quick + (size - smallest) * each for size in sizes}
    plans: list[list[int]] = [[]]
    for rows in range(1, largest + 1):
        choices = [[size, *plans[max(0, rows - size)]] for size in sizes]
        plans.append(min(choices, key=lambda plan: sum(seconds[size] for size in plan)))
    return plans
