"""The single-draw accuracy is exact where p is known, and an attack that does nothing has no effect on the corrected one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwbench.errors import CannotEvaluate
from kwbench.outcome import Outcome, Status
from kwbench.record.single_draw_protocol import single_draw_accuracy, survival_probability


def rows(p: np.ndarray, rng: np.random.Generator, draws: int = 100) -> list[Outcome]:
    """Outcomes as the judge records them at points where predictions are right with probabilities p."""
    return [
        Outcome(
            sample=f"{index:03}",
            index=index,
            label=3,
            status=Status.HELD,
            prediction=3 if rng.random() < chance else 5,
            fresh_correct=int(rng.binomial(draws, chance)),
            fresh_draws=draws,
        )
        for index, chance in enumerate(p)
    ]


@pytest.mark.parametrize("checks", [1, 2, 3, 5])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.87, 1.0])
def test_the_survival_probability_is_estimated_without_bias(p: float, checks: int) -> None:
    # The expectation over every possible number of right draws.
    draws, right = 10, np.arange(11)
    chances = np.array([float(_binomial(draws, k)) * p**k * (1 - p) ** (draws - k) for k in range(11)])
    estimates = survival_probability(right.astype(float), np.full(11, float(draws)), checks)
    assert chances @ estimates == pytest.approx(p**checks, abs=1e-12)
    assert ((estimates >= 0) & (estimates <= 1)).all()


def _binomial(n: int, k: int) -> int:
    return 1 if k in (0, n) else _binomial(n - 1, k - 1) + _binomial(n - 1, k)


@given(st.integers(1, 8), st.integers(0, 8))
def test_survival_is_certain_if_all_draws_hold_and_impossible_if_fewer_are_right_than_checks(checks: int, right: int) -> None:
    (estimate,) = survival_probability(np.array([float(right)]), np.array([8.0]), checks)
    assert (estimate == 1) == (right == 8)
    assert (estimate == 0) == (right < checks)


def test_more_checks_than_draws_are_refused() -> None:
    for checks, draws in ((0, 5.0), (6, 5.0)):
        with pytest.raises(ValueError, match="checks need as many draws"):
            survival_probability(np.array([3.0]), np.array([draws]), checks)


def test_an_attack_that_does_nothing_loses_nothing_however_often_it_is_checked() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(6, 1, size=2000)
    clean = rows(p, rng)
    for k in range(1, 5):
        result = single_draw_accuracy(clean, [rows(p, rng) for _ in range(k)])
        assert result.checks == k + 1
        assert result.expected_noop.value == pytest.approx((p ** (k + 1)).mean(), abs=0.01)
        assert result.expected.value == pytest.approx(result.expected_noop.value, abs=0.005)
        assert result.one_run.value == pytest.approx(result.expected_noop.value, abs=0.03)
        assert result.lost.low < 0 < result.lost.high
        assert result.corrected == pytest.approx(p.mean(), abs=0.01)


def test_the_effect_of_an_attack_is_the_difference_to_an_attack_that_does_nothing() -> None:
    rng = np.random.default_rng(1)
    p, q = np.full(500, 0.9), np.full(500, 0.6)
    result = single_draw_accuracy(rows(p, rng), [rows(q, rng)])
    assert result.expected.value == pytest.approx(0.54, abs=0.01)
    assert result.expected_noop.value == pytest.approx(0.81, abs=0.01)
    assert result.lost.value == pytest.approx(0.27, abs=0.01)
    assert result.lost.low > 0
    assert result.corrected == pytest.approx(0.63, abs=0.02)


def test_one_check_after_an_attack_gives_the_share_of_right_draws() -> None:
    rng = np.random.default_rng(2)
    p, q = np.full(300, 0.9), np.full(300, 0.6)
    attacked = rows(q, rng)
    result = single_draw_accuracy(rows(p, rng), [attacked], check_clean=False)
    assert result.checks == 1
    assert result.expected.value == pytest.approx(np.mean([row.fresh_correct / 100 for row in attacked]))
    assert result.one_run.value == np.mean([row.prediction == 3 for row in attacked])
    assert result.corrected == pytest.approx(result.expected.value)


def test_samples_are_matched_by_their_hash_whatever_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(3)
    clean, attacked = rows(rng.random(50), rng), rows(rng.random(50), rng)
    assert single_draw_accuracy(clean, [attacked[::-1]]) == single_draw_accuracy(clean, [attacked])


def test_other_images_unscored_rows_and_no_check_are_refused() -> None:
    rng = np.random.default_rng(4)
    clean = rows(np.full(5, 0.9), rng)
    with pytest.raises(CannotEvaluate, match="the same images"):
        single_draw_accuracy(clean, [clean[:4]])
    with pytest.raises(CannotEvaluate, match=r"image 0 has no fresh draws \(wrong\)"):
        single_draw_accuracy([Outcome(sample="a", index=0, label=1, status=Status.WRONG)], [])
    with pytest.raises(CannotEvaluate, match="needs at least one check"):
        single_draw_accuracy(clean, [], check_clean=False)
