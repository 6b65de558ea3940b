"""The k-th largest value of each row, without sorting."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.intp]


def kth_largest(rows: Floats, k: int) -> tuple[Floats, Counts]:
    """Return the k-th largest value of each row (b,), and by how many, due to ties, the values at least as large exceed k (b,).

    `rows` is (b, n), float32 or float64, with 1 <= k <= n. Raises ValueError if a value is NaN, which has no rank.
    """
    losers = rows.shape[1] - k
    # np.partition is vectorised, and faster than bisection by counting in Python.
    parted = np.partition(rows, losers, axis=1)
    # np.partition orders NaN last, as the largest.
    if np.isnan(parted[:, losers:].max(axis=1)).any():
        raise ValueError("k-WTA met NaN, which has no rank")
    kth, below = parted[:, losers].copy(), parted[:, :losers]
    surplus = np.zeros(len(rows), np.intp)
    if losers:
        tied = np.flatnonzero(below.max(axis=1) == kth)
        surplus[tied] = np.count_nonzero(below[tied] == kth[tied, None], axis=1)
    return kth, surplus
