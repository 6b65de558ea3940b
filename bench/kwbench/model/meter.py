"""Counts of forward and backward passes for each row of a batch under attack."""

from typing import Literal

import torch
from torch import Tensor


class Meter:
    """Forward and backward passes per row of a batch of `size`; passes that no row is named for are shared equally.

    Counts are kept on the `device` of the rows: a GPU is waited for only when they are read.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._per_row = {kind: torch.zeros(size, dtype=torch.long, device=device) for kind in ("forwards", "backwards")}
        self._shared = {"forwards": 0, "backwards": 0}

    def charge(self, kind: Literal["forwards", "backwards"], count: int, rows: Tensor | None, passes: int) -> None:
        """Add `passes` for each of `count` samples.

        They go to `rows` of the batch if given, else to every row if `count` is the size of the batch, else to the shared
        count.
        """
        per_row = self._per_row[kind]
        if rows is not None and len(per_row):
            per_row.index_add_(0, rows, torch.full_like(rows, passes))
        elif count == len(per_row):
            per_row += passes
        else:
            self._shared[kind] += count * passes

    def work(self) -> tuple[list[int], list[int]]:
        """Forwards and backwards of each row, with an equal part of the shared passes, rounded up."""
        return self._with_shared("forwards"), self._with_shared("backwards")

    def _with_shared(self, kind: str) -> list[int]:
        per_row = self._per_row[kind]
        counts: list[int] = (per_row + -(-self._shared[kind] // max(1, len(per_row)))).tolist()
        return counts
