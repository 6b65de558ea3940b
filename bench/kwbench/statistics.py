"""Intervals for accuracies, and paired tests of two accuracies. Accuracies are fractions of 1.

All methods hold for accuracies near 0 or 1. The most important robust accuracies are close to 0, where textbook intervals fail:
a percentile bootstrap covers 23 % at p = 0.002, n = 128.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

LEVEL = 0.95

# The sign-flip test enumerates its null distribution in at most so many additions, or inverts its Fourier transform in at most
# so many; beyond, it draws so many sign vectors.
_ENUMERATED, _INVERTED = 20_000_000, 100_000_000
_FLIPS = 100_000
# At least the rounding of an inverse transform, by which its p-values are raised.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its confidence interval; low <= value <= high, in [0, 1] for an accuracy, in [-1, 1] for a difference."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A paired test of two classifiers on the same n samples.

    `difference` is mean(first) - mean(second), in [-1, 1]. `gained` and `lost` count the samples on which the second is better
    and worse. `p` is the p-value, `method` the name of the test and its alternative.
    """

    difference: float
    gained: int
    lost: int
    p: float
    n: int
    method: str


def binomial_interval(hits: ArrayLike, n: ArrayLike, level: float = LEVEL) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return exact intervals of Clopper and Pearson (Biometrika 26, 1934) for one or many proportions.

    Args:
        hits: the number of hits, in [0, n]. Any shape; broadcast with n.
        n: number of samples, at least 1.
        level: confidence level in (0, 1).

    Returns:
        Lower and upper ends. Coverage is at least `level` for every p and n.

    Raises:
        ValueError: hits or n out of range.
    """
    k, size = np.broadcast_arrays(np.asarray(hits, dtype=float), np.asarray(n, dtype=float))
    if np.any(size < 1) or np.any(k < 0) or np.any(k > size) or np.any(~np.isfinite(k)):
        raise ValueError("binomial_interval: need 0 <= hits <= n and n >= 1")
    return _beta_ends(k, size - k, (1 - level) / 2)


def mean_interval(
    means: ArrayLike, variances: ArrayLike, n: ArrayLike, level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return intervals for means of values in [0, 1], from their sample means and variances.

    Gaffke's bound (Learned-Miller and Thomas 2019, arXiv:1905.06208, section 2) adds the worst possible value to the sample: 1
    for the upper end, 0 for the lower. It then takes the quantile of the sample mean under random Dirichlet(1, ..., 1) weights.
    For values of 0 or 1 this is the interval of Clopper and Pearson. The weighted mean is distributed almost as a Beta variable
    with the same two moments. We use the quantile of that variable, which needs no simulation and keeps both limits exactly.
    The coverage of neither is proved. Both were simulated; tests/test_statistics.py requires at least 93 % (nominal 95 %).

    Args:
        means: sample means in [0, 1].
        variances: sample variances with divisor n (not n - 1), at most mean * (1 - mean).
        n: number of values, at least 1.
        level: confidence level in (0, 1).

    Returns:
        Lower and upper ends; low < value < high except at values of exactly 0 (low is 0) and 1 (high is 1).

    Raises:
        ValueError: a value out of range.
    """
    mean, variance, size = np.broadcast_arrays(*(np.asarray(values, dtype=float) for values in (means, variances, n)))
    if np.any(size < 1) or np.any(~((mean >= 0) & (mean <= 1))) or np.any(~((variance >= 0) & (variance <= 0.25 + 1e-9))):
        raise ValueError("mean_interval: need values in [0, 1] and n >= 1")
    tail = (1 - level) / 2
    high = _gaffke_upper(mean, variance, size, tail)
    low = 1 - _gaffke_upper(1 - mean, variance, size, tail)
    return np.clip(np.minimum(low, mean), 0, 1), np.clip(np.maximum(high, mean), 0, 1)


@lru_cache(maxsize=65536)
def accuracy_of_hits(hits: int, n: int, level: float = LEVEL) -> Interval:
    """Return hits / n with its Clopper-Pearson interval."""
    if not 0 <= hits <= n or n < 1:
        raise ValueError("accuracy_of_hits: need 0 <= hits <= n and n >= 1")
    # As in `binomial_interval`, which takes ten times as long for one proportion; reports have thousands.
    tail, misses = (1 - level) / 2, n - hits
    low = float(special.betaincinv(hits, misses + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, misses, 1 - tail)) if misses else 1.0
    return Interval(hits / n, low, high)


def accuracy_of_values(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the mean of values in [0, 1], one per sample, with the interval of `mean_interval`."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    # Rounding can leave a mean of ones a little above 1.
    mean = min(max(mean, 0.0), 1.0)
    low, high = mean_interval(mean, array.var(), array.size, level)
    return Interval(mean, float(low), float(high))


def mcnemar(lost: int, gained: int, *, one_sided: bool) -> float:
    """Return the exact p-value of McNemar's test (Psychometrika 12, 1947): half of the discordant samples are lost.

    There are `lost + gained` discordant samples. One-sided: against more losses than gains. Two-sided: twice the smaller
    tail, at most 1.

    Raises:
        ValueError: a negative count.
    """
    if lost < 0 or gained < 0:
        raise ValueError("mcnemar: counts must not be negative")
    discordant = lost + gained
    if discordant == 0:
        return 1.0
    # P(Bin(m, 1/2) >= k) = I_{1/2}(k, m - k + 1)
    more = float(special.betainc(lost, gained + 1, 0.5)) if lost else 1.0
    if one_sided:
        return more
    fewer = float(special.betainc(gained, lost + 1, 0.5)) if gained else 1.0
    return min(1.0, 2 * min(more, fewer))


def sign_flip(differences: ArrayLike, *, one_sided: bool, seed: int = 0) -> float:
    """Return the p-value of the paired permutation test: both signs of a difference are equally likely (Fisher 1935).

    One-sided: against a mean difference above 0. The p-value is exact for up to 20 arbitrary differences and for differences of
    estimated probabilities (multiples of 1/K); of many of these, it is at most 1e-12 above the exact one. Otherwise it is
    estimated from 100,000 sign vectors drawn with `seed`. The observed vector counts too, so that the p-value is never 0
    (Phipson and Smyth 2010).

    Raises:
        ValueError: a difference that is not finite.
    """
    d = np.asarray(differences, dtype=float).ravel()
    if not np.isfinite(d).all():
        raise ValueError("sign_flip: differences must be finite")
    d = d[d != 0]
    if not d.size:
        return 1.0
    integers = _as_integers(d)
    if integers is not None and int(np.abs(integers).sum()) * integers.size <= _ENUMERATED:
        more, fewer = _enumerate(integers)
    elif integers is not None and (inverted := _invert(integers)) is not None:
        more, fewer = inverted
    elif d.size <= 20:
        signs = 1 - 2 * ((np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1)
        more, fewer = _tails(signs @ np.abs(d), d)
    else:
        more, fewer = _sample(d, seed)
    return more if one_sided else min(1.0, 2 * min(more, fewer))


def paired_test(first: ArrayLike, second: ArrayLike, *, one_sided: bool) -> PairedTest:
    """Test whether the second classifier is worse than the first (one-sided) or different (two-sided) on the same samples.

    Args:
        first: one value in [0, 1] per sample: 0 or 1 for a deterministic model, an estimated probability for a stochastic one.
        second: the same for the other classifier, in the same order.
        one_sided: whether the alternative is mean(second) < mean(first), not unequal means.

    Returns:
        McNemar's exact test where every value is 0 or 1, otherwise the sign-flip test.

    Raises:
        ValueError: unequal lengths, or no samples.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError("paired_test: both classifiers need a value for every sample")
    lost, gained = int((b < a).sum()), int((b > a).sum())
    side = "one-sided" if one_sided else "two-sided"
    if np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
        p, method = mcnemar(lost, gained, one_sided=one_sided), f"exact McNemar, {side}"
    else:
        p, method = sign_flip(a - b, one_sided=one_sided), f"paired sign-flip permutation, {side}"
    return PairedTest(float((a - b).mean()), gained, lost, p, int(a.size), method)


def difference_interval(differences: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the mean of paired differences d in [-1, 1] with the interval of `mean_interval` for (1 + d) / 2."""
    half = accuracy_of_values((1 + np.asarray(differences, dtype=float)) / 2, level)
    return Interval(2 * half.value - 1, 2 * half.low - 1, 2 * half.high - 1)


def rank_intervals(values: NDArray[np.float64], level: float = LEVEL) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an interval for the rank of each classifier by its mean value, 1 for the highest.

    A classifier's rank lies between one more than the number of classifiers that are significantly better and the number of
    all that are not significantly worse. Each classifier is tested against every other on the same samples, and its tests are
    corrected by Holm's procedure (Scand. J. Statist. 6, 1979), so that its interval holds with probability `level`. Two
    classifiers with values of 0 or 1 are compared by McNemar's exact test; other pairs by the normal approximation of the
    sign-flip test, since exact tests of all pairs would take hours for a thousand classifiers.

    Args:
        values: one row per classifier and one column per sample, in [0, 1].
        level: confidence level in (0, 1).

    Returns:
        Lowest and highest rank of each classifier.
    """
    count = len(values)
    sums, products = values.sum(axis=1), values @ values.T
    # Samples on which the row's classifier alone is right, if values are 0 or 1.
    wins = np.maximum(sums[:, None] - products, 0.0)
    squares = np.maximum(np.diag(products)[:, None] + np.diag(products)[None] - 2 * products, 0.0)
    ahead = sums[:, None] - sums[None]
    approximate = special.erfc(np.abs(ahead) / np.sqrt(2 * np.maximum(squares, 1e-12)))
    more = np.where(wins > 0, special.betainc(np.maximum(wins, 1e-300), wins.T + 1, 0.5), 1.0)
    exact = np.minimum(1.0, 2 * np.minimum(more, more.T))
    binary = np.asarray(((values == 0) | (values == 1)).all(axis=1))
    p = np.where(binary[:, None] & binary[None], exact, approximate)
    np.fill_diagonal(p, np.inf)
    order = np.argsort(p, axis=1, kind="stable")
    limits = (1 - level) / np.maximum(count - 1 - np.arange(count), 1)
    rejected = np.zeros((count, count), dtype=bool)
    # Holm's procedure stops at the first test that does not reject.
    in_order = np.logical_and.accumulate(np.take_along_axis(p, order, axis=1) <= limits, axis=1)
    np.put_along_axis(rejected, order, in_order, axis=1)
    low: NDArray[np.int64] = 1 + (rejected & (ahead < 0)).sum(axis=1)
    high: NDArray[np.int64] = count - (rejected & (ahead > 0)).sum(axis=1)
    return low, high


def _beta_ends(
    hits: NDArray[np.float64], misses: NDArray[np.float64], tail: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low = np.where(hits == 0, 0.0, special.betaincinv(np.maximum(hits, 1e-300), misses + 1, tail))
    high = np.where(misses == 0, 1.0, special.betaincinv(hits + 1, np.maximum(misses, 1e-300), 1 - tail))
    return low, high


def _gaffke_upper(
    mean: NDArray[np.float64], variance: NDArray[np.float64], n: NDArray[np.float64], tail: float
) -> NDArray[np.float64]:
    """Return the upper end: a quantile of the Beta variable with the moments of the Dirichlet-weighted mean of sample and 1."""
    size = n + 1
    centre = (n * mean + 1) / size
    spread = np.maximum((n * (variance + mean**2) + 1) / size - centre**2, 0.0)
    # A Dirichlet(1, ..., 1) mean has variance spread / (size + 1); a Beta(a, b) has centre (1 - centre) / (a + b + 1).
    degenerate = spread <= 1e-15
    total = centre * (1 - centre) * (size + 1) / np.where(degenerate, 1.0, spread) - 1
    a = np.where(degenerate, 1.0, centre * total)
    b = np.where(degenerate, 1.0, (1 - centre) * total)
    return np.where(degenerate, centre, special.betaincinv(a, b, 1 - tail))


def _as_integers(d: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Return the differences in units of 1/K, for the smallest usual number of draws K that makes them integers, or None."""
    for draws in (1, 50, 100, 128, 200, 250, 256, 500, 1000, 1024):
        scaled = d * draws
        whole = np.rint(scaled)
        if np.abs(scaled - whole).max() < 1e-6:
            integers = whole.astype(np.int64)
            shrunk: NDArray[np.int64] = integers // np.gcd.reduce(integers)
            return shrunk
    return None


def _enumerate(d: NDArray[np.int64]) -> tuple[float, float]:
    """Return P(sum >= observed) and P(sum <= observed) over all sign vectors, by the shifts of Pagano and Tritchler (1983)."""
    # In ascending order the nonzero part stays short for long.
    steps = np.sort(np.abs(d))
    observed = int(d[d > 0].sum())  # the positive part: the sum is twice this minus the total
    mass = np.zeros(int(steps.sum()) + 1)
    mass[0] = 1.0
    reached = 0
    for step in steps.tolist():
        # All above `reached` is zero. Halving each time keeps the numbers in range.
        halved = mass[: reached + 1] * 0.5
        mass[: reached + 1] = halved
        mass[step : reached + 1 + step] += halved
        reached += step
    return min(1.0, float(mass[observed:].sum())), min(1.0, float(mass[: observed + 1].sum()))


def _invert(d: NDArray[np.int64]) -> tuple[float, float] | None:
    """Return P(sum >= observed) and P(sum <= observed) over all sign vectors, from the Fourier transform of the distribution.

    The transform is a product of one cosine for each difference. Return None if that takes too long.
    """
    sizes, counts = np.unique(np.abs(d), return_counts=True)
    # By Hoeffding's inequality, at most 1e-17 lies beyond.
    reach = min(int(sizes @ counts), math.ceil(9 * math.sqrt(sizes**2 @ counts)))
    observed = int(d.sum())
    if abs(observed) > reach:
        return (_ROUNDING, 1.0) if observed > 0 else (1.0, _ROUNDING)
    period = 1 << (2 * reach + 1).bit_length()
    if sizes.size * period > 2 * _INVERTED:
        return None
    cosines = np.cos(2 * np.pi * np.arange(period) / period)
    logarithms, negative = np.log(np.maximum(np.abs(cosines), 1e-300)), cosines < 0
    logarithm, sign = np.zeros(period // 2 + 1), np.zeros(period // 2 + 1, dtype=bool)
    frequencies = np.arange(period // 2 + 1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        at = size * frequencies % period
        logarithm += count * logarithms[at]
        if count % 2:
            sign ^= negative[at]
    mass = np.fft.irfft(np.where(sign, -1, 1) * np.exp(logarithm), period)
    # Negative sums stand at the end.
    mass = np.concatenate([mass[period - reach :], mass[: reach + 1]])
    at_observed = observed + reach
    more, fewer = float(mass[at_observed:].sum()), float(mass[: at_observed + 1].sum())
    return min(1.0, max(more, 0.0) + _ROUNDING), min(1.0, max(fewer, 0.0) + _ROUNDING)


def _tails(sums: NDArray[np.float64], d: NDArray[np.float64]) -> tuple[float, float]:
    # Equal sums may differ in the last bits.
    slack = 1e-9 * float(np.abs(d).sum())
    return float((sums >= d.sum() - slack).mean()), float((sums <= d.sum() + slack).mean())


def _sample(d: NDArray[np.float64], seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    sizes, counts = np.unique(np.abs(d), return_counts=True)
    # Of equal differences only the number that stays positive matters.
    positive = rng.binomial(counts, 0.5, size=(_FLIPS, counts.size)) if counts.size <= 2000 else None
    if positive is not None:
        sums = (2 * positive - counts) @ sizes
    else:
        sums = np.concatenate([(2 * rng.integers(0, 2, size=(1000, d.size)) - 1) @ np.abs(d) for _ in range(_FLIPS // 1000)])
    slack = 1e-9 * float(np.abs(d).sum())
    more = (1 + int((sums >= d.sum() - slack).sum())) / (1 + _FLIPS)
    fewer = (1 + int((sums <= d.sum() + slack).sum())) / (1 + _FLIPS)
    return more, fewer
