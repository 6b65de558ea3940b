"""Counting as the tools of papers count: exact where p is known, and never moved by an attack that does nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwbench.errors import CannotEvaluate
from kwbench.outcome import Outcome, Status
from kwbench.record.counting import all_right, count


def rows(p: np.ndarray, rng: np.random.Generator, draws: int = 100) -> list[Outcome]:
    """What the judge would record at points where the answer is right with probabilities p."""
    return [
        Outcome(
            sample=f"{index:03}",
            index=index,
            label=3,
            status=Status.HELD,
            prediction=3 if rng.random() < each else 5,
            fresh_correct=int(rng.binomial(draws, each)),
            fresh_draws=draws,
        )
        for index, each in enumerate(p)
    ]


@pytest.mark.parametrize("looks", [1, 2, 3, 5])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.87, 1.0])
def test_the_power_of_a_chance_is_estimated_without_bias(p: float, looks: int) -> None:
    # Over every number of right draws there can be, weighted by its chance.
    draws, right = 10, np.arange(11)
    chances = np.array([float(_binomial(draws, k)) * p**k * (1 - p) ** (draws - k) for k in right])
    estimates = all_right(right.astype(float), np.full(11, float(draws)), looks)
    assert chances @ estimates == pytest.approx(p**looks, abs=1e-12)
    assert ((estimates >= 0) & (estimates <= 1)).all()


def _binomial(n: int, k: int) -> int:
    return 1 if k in (0, n) else _binomial(n - 1, k - 1) + _binomial(n - 1, k)


@given(st.integers(1, 8), st.integers(0, 8))
def test_all_draws_right_is_certain_survival_and_fewer_right_than_looks_is_none(looks: int, right: int) -> None:
    (estimate,) = all_right(np.array([float(right)]), np.array([8.0]), looks)
    assert (estimate == 1) == (right == 8)
    assert (estimate == 0) == (right < looks)


def test_more_looks_than_draws_are_refused() -> None:
    for looks, draws in ((0, 5.0), (6, 5.0)):
        with pytest.raises(ValueError, match="looks need as many draws"):
            all_right(np.array([3.0]), np.array([draws]), looks)


def test_an_attack_that_does_nothing_takes_nothing_however_often_one_looks() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(6, 1, size=2000)
    clean = rows(p, rng)
    for k in range(1, 5):
        found = count(clean, [rows(p, rng) for _ in range(k)])
        assert found.looks == k + 1
        assert found.noop.value == pytest.approx((p ** (k + 1)).mean(), abs=0.01)
        assert found.counted.value == pytest.approx(found.noop.value, abs=0.005)
        assert found.single.value == pytest.approx(found.noop.value, abs=0.03)
        assert found.taken.low < 0 < found.taken.high
        assert found.corrected == pytest.approx(p.mean(), abs=0.01)


def test_what_an_attack_takes_is_what_is_left_below_the_count_of_no_attack() -> None:
    rng = np.random.default_rng(1)
    p, q = np.full(500, 0.9), np.full(500, 0.6)
    found = count(rows(p, rng), [rows(q, rng)])
    assert found.counted.value == pytest.approx(0.54, abs=0.01)
    assert found.noop.value == pytest.approx(0.81, abs=0.01)
    assert found.taken.value == pytest.approx(0.27, abs=0.01)
    assert found.taken.low > 0
    assert found.corrected == pytest.approx(0.63, abs=0.02)


def test_one_look_after_an_attack_counts_the_honest_share() -> None:
    rng = np.random.default_rng(2)
    p, q = np.full(300, 0.9), np.full(300, 0.6)
    attacked = rows(q, rng)
    found = count(rows(p, rng), [attacked], look_at_clean=False)
    assert found.looks == 1
    assert found.counted.value == pytest.approx(np.mean([each.fresh_correct / 100 for each in attacked]))
    assert found.single.value == np.mean([each.prediction == 3 for each in attacked])
    assert found.corrected == pytest.approx(found.counted.value)


def test_images_are_matched_by_their_hash_whatever_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(3)
    clean, attacked = rows(rng.random(50), rng), rows(rng.random(50), rng)
    assert count(clean, [attacked[::-1]]) == count(clean, [attacked])


def test_a_count_needs_the_same_images_and_scored_rows() -> None:
    rng = np.random.default_rng(4)
    clean = rows(np.full(5, 0.9), rng)
    with pytest.raises(CannotEvaluate, match="the same images"):
        count(clean, [clean[:4]])
    with pytest.raises(CannotEvaluate, match=r"image 0 has no fresh draws \(wrong\)"):
        count([Outcome(sample="a", index=0, label=1, status=Status.WRONG)], [])
    with pytest.raises(CannotEvaluate, match="a count needs a look"):
        count(clean, [], look_at_clean=False)
