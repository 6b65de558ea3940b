"""The k-th largest value of each row by counting, without sorting: values are only compared with guesses of it.

A sample of the row gives the first guesses (as in Floyd and Rivest 1975, "Expected time bounds for selection"); each count of
the values above a guess gives a better one, until few values are left in doubt. One instruction compares many values; to
partition them takes branches that no processor foresees.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.intp]

_SAMPLE = 400
# So many a row, and four times as many in the worst, are sorted.
_FEW = 300
_GUESSES = 12


def kth_largest(rows: Floats, k: int) -> tuple[Floats, Counts]:
    """The k-th largest of each row (b,), and how many more than k values are at least as large, by ties (b,).

    `rows` is (b, n), float32 or float64, with 1 <= k <= n. Raises ValueError if a value is NaN, which has no rank.
    """
    if np.isnan(rows.max(axis=1)).any():
        raise ValueError("k-WTA met NaN, which has no rank")
    bounds = _Bounds(rows, k)
    with np.errstate(invalid="ignore", over="ignore"):
        for turn in range(_GUESSES):
            if bounds.narrow():
                break
            guess = bounds.next_guess(turn)
            if not (guess > bounds.low).any():
                break
            bounds.tighten(guess)
        return bounds.settle()


class _Bounds:
    """What is known of the k-th largest of each row: it is at least `low`, and less than `high`, which is NaN where unknown.

    `many` and `few` values are at least as large as these. All are (b,).
    """

    def __init__(self, rows: Floats, k: int) -> None:
        b, n = rows.shape
        self.rows, self.k = rows, k
        self.low, self.high = np.full(b, -np.inf, rows.dtype), np.full(b, np.nan, rows.dtype)
        self.many, self.few = np.full(b, n, np.intp), np.zeros(b, np.intp)
        # An odd step meets all columns of an image.
        self.sample = np.sort(rows[:, :: n // _SAMPLE | 1], axis=1)
        self.tied = bool((self.sample[:, 1:] == self.sample[:, :-1]).any())
        self.mask = np.empty((b, n), bool)

    def narrow(self) -> bool:
        """Whether so few values are in doubt that to sort them takes less than another guess."""
        doubt = self.many - self.few
        return bool(doubt.sum() <= _FEW * len(doubt) and doubt.max(initial=0) <= 4 * _FEW)

    def tighten(self, guess: Floats) -> None:
        """Count, and put the guess in the place of a bound."""
        np.greater_equal(self.rows, guess[:, None], out=self.mask)
        count = np.array([np.count_nonzero(row) for row in self.mask], np.intp)
        enough = count >= self.k
        self.low, self.many = np.where(enough, guess, self.low), np.where(enough, count, self.many)
        self.high, self.few = np.where(enough, self.high, guess), np.where(enough, self.few, count)

    def next_guess(self, turn: int) -> Floats:
        """Between the bounds; the lower bound itself where little is in doubt, or no value is left to guess."""
        low, high, size = self.low, self.high, self.sample.shape[1]
        middle = (self.rows.shape[1] - self.k) * size // self.rows.shape[1]
        if not turn:
            return self.sample[:, middle]
        guess = self._interpolated()
        one_sided = np.isinf(low) | np.isnan(high)
        if one_sided.any():
            guess = np.where(one_sided, self._extrapolated(middle) if turn == 1 else self._sampled(turn), guess)
        above = np.nextafter(low, np.inf, dtype=low.dtype)
        if turn > 3:
            guess = self._between(guess)
        if self.tied:
            guess = np.where(np.count_nonzero(self.sample == low[:, None], axis=1) > 1, above, guess)
        # A guess that does not fall between the bounds tells that values are equal there. Perhaps all that are left.
        guess = np.where((low < guess) & ~(guess >= high), guess, above)
        unsure = (self.many - self.few > _FEW) & (guess > -np.finfo(low.dtype).max) & ~(guess >= high)
        return np.where(unsure, guess, low)

    def _interpolated(self) -> Floats:
        """Where about k values are at least as large, or a little beyond, so that this becomes the nearer bound."""
        over, under = self.many - self.k, self.k - self.few
        share = np.where(over < under, over + np.sqrt(under), over - np.sqrt(over)) / (over + under)
        guess: Floats = self.low + (self.high - self.low) * share.astype(self.low.dtype)
        return guess

    def _extrapolated(self, middle: int) -> Floats:
        """The same where one bound is unknown, by how far apart values are about there, a little farther."""
        n, size = self.rows.shape[1], self.sample.shape[1]
        reach = 1 + 2 * int((middle * (size - middle) / size) ** 0.5)
        first, last = max(middle - reach, 0), min(middle + reach, size - 1)
        distance = (self.sample[:, last] - self.sample[:, first]) * (size / (n * max(last - first, 1)))
        missing = np.where(np.isnan(self.high), self.many - self.k, self.k - self.few)
        away = distance * (1.2 * missing + 2 * np.sqrt(missing) + 1)
        guess: Floats = np.where(np.isnan(self.high), self.low + away, self.high - away).astype(self.low.dtype)
        return guess

    def _sampled(self, turn: int) -> Floats:
        """The same by values of the sample, farther from turn to turn."""
        b, size = self.sample.shape
        upwards = np.isnan(self.high)
        bound, missing = np.where(upwards, self.low, self.high), np.where(upwards, self.many - self.k, self.k - self.few)
        place = np.count_nonzero(self.sample < bound[:, None], axis=1)
        away = turn * (1 + (1.3 * size / self.rows.shape[1] * missing).astype(np.intp))
        place = np.clip(np.where(upwards, place + away, place - away), 0, size - 1)
        guess: Floats = self.sample[np.arange(b), place]
        return guess

    def _between(self, guess: Floats) -> Floats:
        """The same by values of the sample between the bounds, for values that crowd there; the guess where there are none."""
        inside = (self.sample > self.low[:, None]) & ~(self.sample >= self.high[:, None])
        number = np.count_nonzero(inside, axis=1)
        place = inside.argmax(axis=1) + number * (self.many - self.k) // (self.many - self.few)
        return np.where(number > 0, self.sample[np.arange(len(place)), place % inside.shape[1]], guess)

    def settle(self) -> tuple[Floats, Counts]:
        """The k-th largest and the surplus, from the values between the bounds."""
        rows, low, b = self.rows, self.low, len(self.rows)
        # No number lies between the bounds: all values there are equal.
        alike = np.nextafter(low, np.inf, dtype=low.dtype) >= self.high
        size = np.where(alike, 0, self.many - self.few)
        inside = np.greater_equal(rows, low[:, None], out=self.mask)
        np.greater(inside, rows >= self.high[:, None], out=inside)
        inside[alike] = False
        left = np.full((b, max(1, size.max(initial=0))), np.inf, rows.dtype)
        place = np.arange(left.shape[1])
        left[place < size[:, None]] = rows[inside]
        left.sort(axis=1)
        # So many of those in doubt are smaller than the k-th largest, or equal.
        before = np.where(alike, 0, size - self.k + self.few)
        kth = left[np.arange(b), before]
        surplus = np.count_nonzero((left == kth[:, None]) & (place < before[:, None]), axis=1)
        return np.where(alike, low, kth), np.where(alike, self.many - self.k, surplus)
