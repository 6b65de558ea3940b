"""Rates of the decisions of `check` on simulated pairs of models: false alarms at a drop of 0, otherwise the power."""

import numpy as np

from kwbench.regression.gate import Decision, decide

DROPS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1)
DETERMINISTIC = (0.0, 0.02, 0.05)
STOCHASTIC = (0.0, 0.1, 0.3)


def rates(kind: str, churn: float, drop: float, runs: int, *, n: int = 360, seed: int = 0) -> dict[Decision, float]:
    """Return the share of each decision at max_drop 1 point and alpha 0.01; the old A_rob is about 0.6, the new `drop` less.

    Args:
        kind: "deterministic" or "stochastic".
        churn: deterministic: samples are lost with probability churn + drop, and gained with probability churn.
            Stochastic: the p of a sample moves by up to `churn` either way; both models have 100 draws per sample.
        drop: drop of A_rob, a fraction of 1.
        runs: number of simulated pairs.
        n: samples per pair.
        seed: seed of the simulation.
    """
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(Decision, 0)
    for _ in range(runs):
        if kind == "deterministic":
            before = (rng.random(n) < 0.6).astype(float)
            uniform = rng.random(n)
            after = np.where(before == 1, uniform >= (churn + drop) / 0.6, uniform < churn / 0.4).astype(float)
        else:
            p = rng.beta(2, 4 / 3, n)
            moved = p + rng.uniform(-1, 1, n) * np.minimum(churn, np.minimum(p, 1 - p))
            before = rng.binomial(100, p) / 100
            after = rng.binomial(100, moved * (1 - drop / 0.6)) / 100
        counts[decide(before, after, max_drop=1.0, alpha=0.01)[0]] += 1
    return {decision: count / runs for decision, count in counts.items()}


def table(runs_deterministic: int, runs_stochastic: int) -> str:
    """Return the rates as a Markdown table; cells are exit code 1 / exit code 3, in percent."""
    header = " | ".join(f"{100 * drop:g}" for drop in DROPS)
    lines = [f"| model | churn | drop {header} |", "| :-- | --: |" + " --: |" * len(DROPS)]
    for kind, churns, runs in (
        ("deterministic", DETERMINISTIC, runs_deterministic),
        ("stochastic", STOCHASTIC, runs_stochastic),
    ):
        for churn in churns:
            cells = []
            for drop in DROPS:
                shares = rates(kind, churn, drop, runs)
                cells.append(f"{100 * shares[Decision.REGRESSION]:.1f} / {100 * shares[Decision.UNDECIDED]:.1f}")
            lines.append(f"| {kind} | {100 * churn:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(20_000, 2_000))
