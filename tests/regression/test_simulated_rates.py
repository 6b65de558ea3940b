"""The documented rates of false alarms and of detected regressions are those of the check."""

import numpy as np
import pytest
from scipy import stats

from kwbench.regression.gate import Decision
from support.simulation import DETERMINISTIC, DROPS, STOCHASTIC, rates

# How often a check ends with exit code 1 / with exit code 3, in percent, by the drop in points; a drop of 0 shows false alarms.
# At n = 360, max_drop 1 point, alpha 0.01 and a baseline A_rob of 60 %. Churn, in points: for deterministic models, the samples
# that a retrained model loses, and gains, at no drop; for stochastic models (100 draws a sample), how far p moves either way.
# From 20,000 runs (2,000 if stochastic) of support/simulation.py. docs/pages/how-to/ci.md has the same table.
MEASURED = """\
| model | churn | drop 0 | 1 | 2 | 3 | 5 | 8 | 10 |
| :-- | --: | --: | --: | --: | --: | --: | --: | --: |
| deterministic | 0 | 0.0 / 0.0 | 7.1 / 41.1 | 57.9 / 35.4 | 91.7 / 7.9 | 99.9 / 0.1 | 100.0 / 0.0 | 100.0 / 0.0 |
| deterministic | 2 | 0.4 / 16.7 | 4.0 / 46.3 | 15.8 / 62.8 | 35.6 / 57.7 | 77.6 / 22.0 | 98.8 / 1.2 | 99.9 / 0.1 |
| deterministic | 5 | 0.6 / 26.7 | 2.7 / 47.1 | 8.0 / 62.8 | 18.3 / 67.5 | 50.3 / 47.4 | 88.8 / 11.1 | 97.4 / 2.6 |
| stochastic | 0 | 0.1 / 0.0 | 49.4 / 0.0 | 99.9 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
| stochastic | 10 | 0.7 / 0.1 | 49.2 / 1.8 | 99.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
| stochastic | 30 | 1.3 / 10.4 | 14.1 / 37.5 | 56.5 / 33.5 | 92.7 / 6.7 | 100.0 / 0.0 | 100.0 / 0.0 | 100.0 / 0.0 |
"""


def _documented() -> dict[tuple[str, float, float], tuple[float, float]]:
    """Return the shares of exit code 1 and of exit code 3 by kind of model, churn and drop."""
    shares = {}
    for line in MEASURED.splitlines()[2:]:
        kind, churn, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for drop, cell in zip(DROPS, cells, strict=True):
            exit_1, exit_3 = (float(part) / 100 for part in cell.split("/"))
            shares[kind, float(churn) / 100, drop] = (exit_1, exit_3)
    return shares


@pytest.mark.parametrize("kind", ["deterministic", "stochastic"])
def test_the_documented_rates_are_those_of_the_check(kind: str) -> None:
    documented = _documented()
    runs = 400 if kind == "deterministic" else 100
    for churn in DETERMINISTIC if kind == "deterministic" else STOCHASTIC:
        for drop in DROPS[::2]:
            simulated = rates(kind, churn, drop, runs, seed=1)
            for decision, share in zip((Decision.REGRESSION, Decision.UNDECIDED), documented[kind, churn, drop], strict=True):
                # The central interval that a repetition leaves with a probability of 1e-4.
                low, high = stats.binom.ppf(np.array([5e-5, 1 - 5e-5]), runs, np.clip(share, 5e-4, 1 - 5e-4)) / runs
                assert low <= simulated[decision] <= high, (churn, drop, decision)


def test_the_documented_false_alarms_are_few() -> None:
    assert all(exit_1 <= 0.02 for (_, _, drop), (exit_1, _) in _documented().items() if drop == 0)
