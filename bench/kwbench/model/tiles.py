"""The tile of each kind of pass on a GPU, chosen by trial: the largest batch that still gains time and fits into memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kwbench.model.forward import Precision

# A kind of pass: its precision, and whether gradients follow. Predictions that count are in float32 without gradients.
Kind = tuple[Precision, bool]

# The sizes that are tried. A larger one is taken if an image then takes at most this share of its time before.
_SMALLEST, _LARGEST, _WORTHWHILE = 64, 4096, 0.95
# Attacks keep images and gradients of their own, and a recorded pass has memory of its own.
_SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True, slots=True)
class TileTrial:
    """How tiles are chosen.

    `at_most`: the number of images there are, above which a tile is padding only. `memory`: bytes of the device. `peak`
    returns the most bytes in use since it was last called.
    """

    at_most: int
    memory: int
    peak: Callable[[], int]

    @staticmethod
    def on_gpu(device: torch.device, at_most: int) -> "TileTrial":
        """Return the trial on a GPU."""

        def peak() -> int:
            most = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            return most

        return TileTrial(at_most, torch.cuda.mem_get_info(device)[1], peak)

    def choose(self, seconds_of: Callable[[int], float]) -> int:
        """Return the largest of 64 to 4,096 that still gains 5 % an image and fits into half of the memory.

        `seconds_of` runs a pass over so many images and returns its seconds. Where a size does not run, no larger one is tried.
        """
        chosen, least = _SMALLEST, float("inf")
        size = _SMALLEST
        while size == _SMALLEST or (size <= _LARGEST and size < 2 * self.at_most):
            self.peak()
            try:
                seconds_of(size)  # the first pass of a shape includes its preparation
                seconds = min(seconds_of(size), seconds_of(size)) / size
            except Exception as failure:  # noqa: BLE001 - foreign code may not accept a larger batch
                if isinstance(failure, torch.OutOfMemoryError):
                    torch.cuda.empty_cache()
                break
            if self.peak() > _SHARE_OF_MEMORY * self.memory:
                break
            if seconds <= _WORTHWHILE * least:
                chosen, least = size, seconds
            size *= 2
        return chosen


def name_of(kind: Kind) -> str:
    """Return the name of a kind of pass on record."""
    precision, gradients = kind
    return f"{precision} {'gradients' if gradients else 'predictions'}"
