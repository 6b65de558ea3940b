"""Certificates of models with Gaussian noise on their input."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from kwbench.record.certificates import gaussian_bounds
from kwbench.threat import ThreatModel

ORIGIN: dict[str, Any] = {"entry": {"smoothing": 0.25}, "prediction": {"kind": "draw", "draws": 1}}
COUNTS = np.array([[1000, 1000], [900, 1000], [400, 1000], [0, 1000]], dtype=float)


def test_a_single_draw_is_bounded_by_the_lemma_of_neyman_and_pearson_jointly() -> None:
    bounds = gaussian_bounds(COUNTS, ThreatModel.of("l2", "0.25"), ORIGIN)
    assert bounds is not None
    low = [beta.ppf(0.001 / 4, hits, n - hits + 1) if hits else 0.0 for hits, n in COUNTS]
    assert bounds == pytest.approx([norm.cdf(norm.ppf(p) - 1) for p in low], abs=1e-9)
    assert bounds[0] > 0.9
    assert (np.diff(bounds) < 0).all()


def test_a_vote_is_right_if_most_of_its_draws_are() -> None:
    single = gaussian_bounds(COUNTS, ThreatModel.of("l2", "0.1"), ORIGIN)
    votes = gaussian_bounds(COUNTS, ThreatModel.of("l2", "0.1"), ORIGIN | {"prediction": {"kind": "vote", "draws": 8}})
    assert single is not None
    assert votes is not None
    assert votes == pytest.approx(binom.sf(4, 8, single))


@pytest.mark.parametrize(
    ("threat", "changed"),
    [
        (ThreatModel.of("linf", "0.1"), {}),
        (ThreatModel.of("l2", "0.1"), {"entry": {"smoothing": None}}),
        (ThreatModel.of("l2", "0.1"), {"entry": "in memory"}),
        (ThreatModel.of("l2", "0.1"), {"prediction": {"kind": "mean_logits", "draws": 8}}),
    ],
)
def test_other_norms_models_and_rules_have_no_such_bound(threat: ThreatModel, changed: dict[str, Any]) -> None:
    assert gaussian_bounds(COUNTS, threat, ORIGIN | changed) is None


def test_no_shift_of_the_noise_lowers_the_probability_below_the_bound() -> None:
    """For a linear classifier the bound is attained."""
    sigma, eps, lead = 0.25, 0.3, 0.4
    draws = np.random.default_rng(0).normal(lead, sigma, 4000) > 0
    counts = np.array([[draws.sum(), len(draws)]], dtype=float)
    bounds = gaussian_bounds(counts, ThreatModel.of("l2", str(eps)), ORIGIN)
    assert bounds is not None
    truth = norm.cdf((lead - eps) / sigma)
    assert truth - 0.1 < bounds[0] <= truth
