"""The documented rates of false alarms and of detected regressions are those of the check."""

import re

import numpy as np
import pytest
from scipy import stats

from kwbench.regression.gate import Decision
from support.doc_blocks import REPOSITORY
from support.simulation import DETERMINISTIC, DROPS, STOCHASTIC, rates

# How often a check ends with exit code 1 / with exit code 3, in percent, by the drop in points; a drop of 0 shows false alarms.
# At n = 360, max_drop 1 point, alpha 0.01 and a baseline A_rob of 60 %. Churn, in points: for deterministic models, the samples
# that a retrained model loses, and gains, at no drop; for stochastic models (100 draws a sample), how far p moves either way.
# From 20,000 runs (2,000 if stochastic) of support/simulation.py. The page holds the table.
PAGE = REPOSITORY / "docs" / "pages" / "how-to" / "ci.md"


def _documented() -> dict[tuple[str, float, float], tuple[float, float]]:
    """Return the shares of exit code 1 and of exit code 3 by kind of model, churn and drop."""
    shares = {}
    for line in re.findall(r"^\| (?:deterministic|stochastic) .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
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
