"""How often `check` calls a regression, on simulated pairs of models: the false-alarm rate at a drop of 0, else the power."""

import numpy as np

from kwbench.regression.gate import Decision, decide

DROPS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1)
DETERMINISTIC = (0.0, 0.02, 0.05)
STOCHASTIC = (0.0, 0.1, 0.3)


def rates(kind: str, churn: float, drop: float, runs: int, *, n: int = 360, seed: int = 0) -> dict[Decision, float]:
    """The share of each verdict at max_drop 1 point, alpha 0.01; the old A_rob is about 0.6, the new lower by `drop`.

    Deterministic: samples are lost with probability churn + drop and gained with probability churn. Stochastic: a sample's
    p moves by up to `churn` either way, 100 draws each.
    """
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(Decision, 0)
    for _ in range(runs):
        if kind == "deterministic":
            before = (rng.random(n) < 0.6).astype(float)
            luck = rng.random(n)
            after = np.where(before == 1, luck >= (churn + drop) / 0.6, luck < churn / 0.4).astype(float)
        else:
            p = rng.beta(2, 4 / 3, n)
            moved = p + rng.uniform(-1, 1, n) * np.minimum(churn, np.minimum(p, 1 - p))
            before = rng.binomial(100, p) / 100
            after = rng.binomial(100, moved * (1 - drop / 0.6)) / 100
        counts[decide(before, after, max_drop=1.0, alpha=0.01)[0]] += 1
    return {verdict: count / runs for verdict, count in counts.items()}


def table(runs_deterministic: int, runs_stochastic: int) -> str:
    """The rates as Markdown: "exit 1 / exit 3" in percent."""
    heads = " | ".join(f"{100 * drop:g}" for drop in DROPS)
    lines = [f"| model | churn | drop {heads} |", "| :-- | --: |" + " --: |" * len(DROPS)]
    for kind, churns, runs in (
        ("deterministic", DETERMINISTIC, runs_deterministic),
        ("stochastic", STOCHASTIC, runs_stochastic),
    ):
        for churn in churns:
            cells = []
            for drop in DROPS:
                found = rates(kind, churn, drop, runs)
                cells.append(f"{100 * found[Decision.REGRESSION]:.1f} / {100 * found[Decision.UNDECIDED]:.1f}")
            lines.append(f"| {kind} | {100 * churn:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(20_000, 2_000))
