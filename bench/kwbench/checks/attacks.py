"""Checks that attack: accuracy must fall with eps, a free attack must succeed, many steps must beat one."""

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from kwbench.attacks.fgsm import Fgsm
from kwbench.attacks.pgd import Pgd
from kwbench.checks.case import Case, percent
from kwbench.finding import Finding
from kwbench.gradients import EXACT, Es, Gradient, Relaxed, Smooth
from kwbench.model import Model, Precision
from kwbench.randomness import derived_seed, seeded_globally
from kwbench.threat import ThreatModel

# Radii of the sweep, in eps; 20 steps each.
SWEEP = (Fraction(1, 2), Fraction(1), Fraction(2))
STEPS = 20
# A larger ball holds the smaller one: more accuracy in it is the attack's failure. Luck of the start accounts for less.
RISE = 0.05
# What may be left where every image can be turned into any other.
LEFT = 0.05
# Of samples that one step breaks and many do not.
SINGLE = 0.05
# Seeds to freeze a stochastic model under, and the noise of accuracies on so few samples.
SEEDS = 5
FROZEN = 0.05


def more_leaves_less(case: Case) -> list[Finding]:
    """PGD on the model's own gradients at half, once and twice eps, and where any image can be turned grey; and samples that
    one step of the gradient's sign breaks and 20 steps do not.
    """
    grey = half_range(case.threat, case.batch.x[0].numel())
    radii = sorted({case.threat.eps * factor for factor in SWEEP if case.threat.eps * factor < grey} | {case.threat.eps, grey})
    left = {radius: _left(case, radius, EXACT, f"eps sweep {radius}") for radius in radii}
    accuracies = [left[radius].mean().item() for radius in radii]
    rise = max(later - min(accuracies[: at + 1]) for at, later in enumerate(accuracies[1:]))
    shown = ", ".join(f"{float(radius):.3g}: {percent(value)}" for radius, value in zip(radii, accuracies, strict=True))
    grey_left = left[grey].mean().item()
    # Grey images all look the same: no more than the share of one class can be right.
    chance = case.batch.y.bincount().max().item() / len(case.batch)
    room = 2 * (chance * (1 - chance) / len(case.batch)) ** 0.5
    one = _propose(case, Fgsm(loss="margin"), case.threat, "single step")
    better = left[case.threat.eps] - one > 0.5
    share = better.float().mean().item()
    return [
        case.finding(
            "eps sweep",
            rise,
            RISE,
            f"accuracy under PGD rises by {percent(rise)} from a smaller to a larger ball ({shown})",
            "masking",
        ),
        case.finding(
            "large eps",
            grey_left,
            round(min(chance + room, 1.0), 6),
            f"where PGD may turn every image grey, {percent(grey_left)} of the samples stay right",
            "masking",
        ),
        case.finding(
            "single step",
            share,
            SINGLE,
            f"a single step breaks {percent(share)} of the samples that {STEPS} steps on the same gradients do not",
            "masking",
            concerned=better,
        ),
    ]


def free_attack_succeeds(case: Case) -> list[Finding]:
    """PGD that may change every pixel at will; on what it leaves, other estimators."""
    everything = half_range(case.threat, case.batch.x[0].numel()) * 2
    left = _left(case, everything, EXACT, "unbounded")
    alone = left.mean().item()
    found = [
        case.finding(
            "unbounded attack",
            alone,
            LEFT,
            f"PGD that may change every pixel at will leaves {percent(alone)} of the samples right",
            "masking",
            concerned=left > 0.5,
        )
    ]
    for gradient in (Relaxed(unreachable="zero"), Smooth(0.1, draws=4), Es(0.1, draws=20)):
        # The next one costs more; it goes on where those before it failed.
        if left.mean().item() <= LEFT:
            break
        rows = (left > LEFT).nonzero().flatten()
        rest = replace(case, batch=case.batch.take(rows.tolist()))
        left[rows] = torch.minimum(left[rows], _left(rest, everything, gradient, f"unbounded {gradient.kind}"))
    best = left.mean().item()
    statement = (
        "no gradient, relaxed and smoothed ones and those from function values included, leads an unbounded attack past "
        f"{percent(best)}"
    )
    return [*found, case.finding("unreachable", best, LEFT, statement, "doubt", concerned=left > 0.5)]


def frozen_is_weaker(case: Case) -> list[Finding]:
    """For stochastic models: what PGD leaves of the network under one seed that it knows, over five seeds, and what the
    evaluation left in expectation. An adversary who knows the seed is the stronger one: frozen <= expected <= standard.

    For single draws: the mean of several, or their vote, is another classifier.
    """
    if not case.model.stochastic or not case.robust or case.model.prediction.kind != "draw":
        return []
    attack = Pgd(steps=10, relative_step_size=1 / 4, loss="margin", early_exit=False)
    accuracies = []
    for seed in range(SEEDS):
        model = case.model
        # Nobody leaves its place in a tile, by which the noise goes.
        frozen = Model(
            _Frozen(model.module, derived_seed(case.seed, "frozen", seed)),
            name=model.name,
            classes=model.classes,
            shape=model.shape,
            device=model.device,
            tile=model.tile,
        )
        about = replace(case, model=frozen)
        accuracies.append(_propose(about, attack, case.threat, f"frozen {seed}").mean().item())
    expected = sum(case.robust) / len(case.robust)
    lead = sum(accuracies) / SEEDS - expected
    case.random("standard")
    excess = expected - case.right(case.batch.x).mean().item()
    return [
        case.finding(
            "frozen randomness",
            lead,
            FROZEN,
            f"under a seed that it knows, PGD leaves {100 * lead:+.0f} points from what the strongest leave in expectation, "
            "where it should leave less",
            "masking",
        ),
        case.finding(
            "above standard",
            excess,
            FROZEN,
            f"the robust accuracy lies {100 * excess:+.0f} points from the accuracy on the images themselves, which bounds it",
            "doubt",
        ),
    ]


class _Frozen(nn.Module):
    """A network whose randomness is the same at every pass."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        super().__init__()
        self.network, self.seed = network, seed

    def forward(self, x: Tensor) -> Tensor:
        """Logits of x."""
        with seeded_globally(self.seed):
            logits: Tensor = self.network(x)
        return logits


def half_range(threat: ThreatModel, pixels: int) -> Fraction:
    """The radius within which every image of so many pixels can be turned grey."""
    if threat.norm == "linf":
        return Fraction(1, 2)
    return Fraction(pixels, 2) if threat.norm == "l1" else Fraction(round(500 * pixels**0.5) + 1, 1000)


def _left(case: Case, radius: Fraction, gradient: Gradient, name: str) -> Tensor:
    """The accuracies (b,) that PGD leaves within a radius."""
    precision: Precision = case.precision if gradient.tolerates_rounding else "float32"
    attack = Pgd(steps=STEPS, relative_step_size=1 / 8, loss="margin", gradient=gradient, precision=precision)
    return _propose(case, attack, ThreatModel(case.threat.norm, radius), name)


def _propose(case: Case, attack: Pgd | Fgsm, threat: ThreatModel, name: str) -> Tensor:
    rng = case.random(name)
    try:
        with case.model.metering(len(case.batch)):
            z = attack(case.model, case.batch.x.clone(), case.batch.y.clone(), threat, rng)
    except RuntimeError as failure:
        if "does not require grad" not in str(failure) and "not have been used in the graph" not in str(failure):
            raise
        return case.right(case.batch.x)
    z = torch.where(z.isfinite(), z, case.batch.x)
    case.same_draws(name, "answers")
    return case.right(z)
