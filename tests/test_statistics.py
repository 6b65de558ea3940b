"""Intervals hold near 0 and 1, and the paired tests are exact."""

import itertools

import numpy as np
import pytest
from scipy import stats

from kwbench.statistics import (
    accuracy_of_hits,
    accuracy_of_values,
    binomial_interval,
    difference_interval,
    mcnemar,
    mean_interval,
    paired_test,
    rank_intervals,
    sign_flip,
)

RATES = (0.0, 0.001, 0.005, 0.02, 0.1, 0.5, 0.9, 0.995)
SIZES = (128, 360, 512)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", RATES)
def test_the_binomial_interval_covers_at_least_its_level_exactly(p: float, n: int) -> None:
    hits = np.arange(n + 1)
    low, high = binomial_interval(hits, n)
    covered = stats.binom.pmf(hits, n, p)[(low <= p) & (p <= high)].sum()
    assert covered >= 0.95 - 1e-9


def test_the_binomial_interval_is_scipys() -> None:
    for hits, n in ((0, 128), (3, 360), (512, 512), (200, 360)):
        expected = stats.binomtest(hits, n).proportion_ci(method="exact")
        interval = accuracy_of_hits(hits, n)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_one_proportion_has_the_same_interval_as_many() -> None:
    hits = np.arange(361)
    low, high = binomial_interval(hits, 360)
    assert [(interval.low, interval.high) for interval in (accuracy_of_hits(k, 360) for k in hits.tolist())] == list(
        zip(low.tolist(), high.tolist(), strict=True)
    )
    for impossible in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="0 <= hits <= n"):
            accuracy_of_hits(*impossible)


def populations(p: float, rng: np.random.Generator, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return draws from distributions of the samples' probabilities with mean p."""
    distributions = {"equal": np.full(shape, p), "zero or one": (rng.random(shape) < p).astype(float)}
    if 0 < p < 1:
        distributions |= {f"beta {spread}": rng.beta(p * spread, (1 - p) * spread, shape) for spread in (0.2, 1, 5, 50)}
    if 0 < p < 0.5:
        distributions["zero or half"] = 0.5 * (rng.random(shape) < 2 * p)
        distributions["rare ones in noise"] = np.where(rng.random(shape) < p / 2, 1.0, p / 2 / (1 - p / 2))
    return distributions


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", RATES)
def test_the_interval_of_means_of_draws_covers_93_percent(p: float, n: int) -> None:
    rng = np.random.default_rng(n)
    for name, chances in populations(p, rng, (1500, n)).items():
        values = rng.binomial(100, chances) / 100
        low, high = mean_interval(values.mean(axis=1), values.var(axis=1), n)
        covered = float(((low <= p + 1e-12) & (p <= high + 1e-12)).mean())
        assert covered >= 0.93, name


def test_the_interval_at_zero_ends_above_zero() -> None:
    for n in SIZES:
        interval = accuracy_of_values(np.zeros(n))
        assert interval.low == 0
        assert 0 < interval.high < 4 / n


def test_the_interval_at_one_ends_below_one() -> None:
    interval = accuracy_of_values(np.ones(360))
    assert interval.high == 1
    assert 0.98 < interval.low < 1


def test_on_zeros_and_ones_the_interval_of_means_is_clopper_pearson() -> None:
    hits = np.arange(361)
    share = hits / 360
    assert np.allclose(mean_interval(share, share * (1 - share), 360), binomial_interval(hits, 360), atol=1e-9)


def test_the_interval_of_means_is_tight_in_the_middle() -> None:
    values = np.random.default_rng(0).beta(0.5, 0.5, 360)
    interval = accuracy_of_values(values)
    assert interval.high - interval.low < 1.1 * 2 * 1.96 * values.std() / np.sqrt(360)


def test_the_interval_of_means_is_close_to_gaffkes_by_simulation() -> None:
    rng = np.random.default_rng(1)
    values = rng.binomial(100, rng.beta(0.3, 0.6, 128)) / 100
    weights = rng.dirichlet(np.ones(129), 40_000)
    gaffke = np.quantile(weights @ np.append(values, 1.0), 0.975)
    assert accuracy_of_values(values).high == pytest.approx(gaffke, abs=2e-3)


def test_percentile_bootstrap_would_not_cover_near_zero() -> None:
    # The usual interval fails here, which is why the one above is needed.
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        sample = (rng.random(128) < 0.002).astype(float)
        means = sample[rng.integers(0, 128, (200, 128))].mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        covered += bool(low <= 0.002 <= high)
    assert covered / 200 < 0.5


def test_impossible_counts_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="hits"):
        binomial_interval(5, 4)
    with pytest.raises(ValueError, match="values"):
        mean_interval(1.5, 0.0, 10)
    with pytest.raises(ValueError, match="values"):
        mean_interval(float("nan"), 0.0, 10)
    with pytest.raises(ValueError, match="finite"):
        sign_flip([0.1, float("nan")], one_sided=True)
    with pytest.raises(ValueError, match="every sample"):
        paired_test([1.0], [1.0, 0.0], one_sided=True)


def test_mcnemar_is_the_binomial_test_of_the_discordant_samples() -> None:
    for lost, gained in itertools.product(range(9), repeat=2):
        if lost + gained == 0:
            assert mcnemar(lost, gained, one_sided=True) == mcnemar(lost, gained, one_sided=False) == 1
            continue
        one = stats.binomtest(lost, lost + gained, alternative="greater").pvalue
        two = stats.binomtest(lost, lost + gained).pvalue
        assert mcnemar(lost, gained, one_sided=True) == pytest.approx(one)
        assert mcnemar(lost, gained, one_sided=False) == pytest.approx(two)


@pytest.mark.parametrize("scale", [0.01, 0.01 * np.pi])
def test_the_sign_flip_test_enumerates_all_sign_vectors(scale: float) -> None:
    # Whole multiples take the counting path, the others enumeration; both must agree with brute force.
    d = scale * np.array([3, -1, 7, 20, 50, -11, 2, 3, 3, -3])
    sums = np.array(list(itertools.product((1, -1), repeat=len(d)))) @ np.abs(d)
    more, fewer = (sums >= d.sum() - 1e-12).mean(), (sums <= d.sum() + 1e-12).mean()
    assert sign_flip(d, one_sided=True) == pytest.approx(more)
    assert sign_flip(d, one_sided=False) == pytest.approx(min(1, 2 * min(more, fewer)))


def test_the_sampled_sign_flip_test_agrees_with_the_exact_one() -> None:
    rng = np.random.default_rng(3)
    d = rng.integers(-30, 40, 200) / 100
    exact = sign_flip(d, one_sided=True)
    # Tiny noise takes the differences off the grid, so that the test samples sign vectors.
    sampled = sign_flip(d + rng.uniform(-1e-5, 1e-5, 200), one_sided=True)
    assert sampled == pytest.approx(exact, abs=3 * np.sqrt(exact / 100_000) + 1e-4)
    assert sampled > 0


@pytest.mark.parametrize(("n", "largest"), [(30, 7), (500, 100), (501, 1)])
def test_the_p_value_is_the_same_enumerated_and_from_the_transform(
    n: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(6)
    differences = [(rng.integers(-largest, largest + 1, n) + shift) / 100 for shift in (-largest // 3, 0, 1, largest)]
    enumerated = [sign_flip(d, one_sided=True) for d in differences]
    monkeypatch.setattr("kwbench.statistics._ENUMERATED", 0)
    assert [sign_flip(d, one_sided=True) for d in differences] == pytest.approx(enumerated, abs=2e-12)


def test_many_estimated_probabilities_have_a_p_value_that_no_seed_changes() -> None:
    rng = np.random.default_rng(7)
    d = (rng.binomial(100, 0.5, 10_000) - rng.binomial(100, 0.502, 10_000)) / 100
    p = sign_flip(d, one_sided=False)
    assert p == sign_flip(d, one_sided=False, seed=1)
    # The null distribution is close to normal.
    assert p == pytest.approx(2 * stats.norm.sf(abs(d.sum()) / np.linalg.norm(d)), rel=0.02)
    assert 0 < sign_flip(np.abs(d), one_sided=True) < 1e-11


def test_on_zeros_and_ones_the_sign_flip_test_is_mcnemars() -> None:
    d = np.array([1.0] * 9 + [-1.0] * 3 + [0.0] * 50)
    assert sign_flip(d, one_sided=True) == pytest.approx(mcnemar(9, 3, one_sided=True))
    assert paired_test(np.maximum(d, 0), np.maximum(-d, 0), one_sided=True).method.startswith("exact McNemar")


@pytest.mark.parametrize("one_sided", [True, False])
def test_the_sign_flip_test_keeps_its_level_where_nothing_differs(one_sided: bool) -> None:
    rng = np.random.default_rng(4)
    alarms = 0
    for _ in range(400):
        p = rng.beta(2, 1, 128)
        first, second = rng.binomial(100, p) / 100, rng.binomial(100, p) / 100
        alarms += paired_test(first, second, one_sided=one_sided).p < 0.05
    assert alarms <= stats.binom.ppf(0.999, 400, 0.05)


def test_equal_values_have_a_p_value_of_one() -> None:
    same = np.array([0.0, 1.0, 1.0])
    assert paired_test(same, same, one_sided=True).p == 1
    assert paired_test(same / 3, same / 3, one_sided=False).p == 1


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.01, 0.0), (0.05, 0.0), (0.03, 0.03), (0.3, 0.2)])
def test_the_interval_of_a_paired_difference_covers_93_percent(lost: float, gained: float) -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(500):
        luck = rng.random(360)
        interval = difference_interval(np.where(luck < lost, 1.0, np.where(luck < lost + gained, -1.0, 0.0)))
        covered += interval.low - 1e-12 <= lost - gained <= interval.high + 1e-12
    assert covered / 500 >= 0.93


def test_ranks_are_intervals_that_a_clear_winner_leaves_and_equals_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    values = np.array([(hard > share).astype(float) for share in (0.1, 0.5, 0.51, 0.9)])
    low, high = rank_intervals(values)
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == [(1, 1), (2, 3), (2, 3), (4, 4)]
    assert [ends.tolist() for ends in rank_intervals(values[:1])] == [[1], [1]]


def test_rank_intervals_hold_for_models_that_are_equally_good() -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        probabilities = rng.random((3, 60)) < 0.6
        low, high = rank_intervals(probabilities.astype(float))
        missed += int((low[0], high[0]) != (1, 3))
    # Of equal models, each rank is true. Nominal level 5 %; exceeded with a probability of 1e-4.
    assert missed <= 22


def test_rank_intervals_also_compare_probabilities() -> None:
    rng = np.random.default_rng(2)
    certain = (rng.random(200) < 0.9).astype(float)
    values = np.stack([certain, np.clip(certain - 0.4, 0, 1), np.clip(certain - 0.41, 0, 1) + 0.01 * (certain == 0)])
    low, high = rank_intervals(values)
    assert (int(low[0]), int(high[0])) == (1, 1)
    assert low[1:].min() == 2
