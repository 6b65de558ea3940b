"""Checks by plain PGD: a larger ball must leave less accuracy, an unbounded attack none, and the loss must converge."""

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from kwbench.attacks.fgsm import Fgsm
from kwbench.attacks.pgd import Pgd
from kwbench.checks.case import Case, percent
from kwbench.checks.zero_gradients import margin_of
from kwbench.finding import Check, Criterion, Finding
from kwbench.geometry import project, random_start, steepest
from kwbench.gradients import EXACT, CutGradientError, Es, Gradient, Relaxed, Smooth
from kwbench.model import Precision
from kwbench.threat import ThreatModel

# The radii of the sweep, in eps, and the steps of PGD at each.
SWEEP = (Fraction(1, 2), Fraction(1), Fraction(2))
STEPS = 20
# A larger ball contains the smaller one, so that more accuracy in it is the attack's failure; random starts explain less.
RISE = 0.05
# The accuracy that may remain where every image can be turned into any other.
LEFT = 0.05
# The share of samples that one step breaks and many steps do not.
SINGLE = 0.05
# Sound networks stay below 0.08. (Pintor et al. 2022, arXiv:2106.09947, indicator I4, use the last tenth of the steps.)
LATE_RISE = 0.15

EPS_SWEEP = Criterion("eps sweep", kind="masking")
LARGE_EPS = Criterion("large eps", kind="masking")
SINGLE_STEP = Criterion("single step", kind="masking")
UNBOUNDED = Criterion("unbounded attack", kind="masking")
UNREACHABLE = Criterion("unreachable", kind="doubt", remedy="an estimator with which an unbounded attack succeeds")
RISING_LOSS = Criterion("rising loss", kind="masking")


def accuracy_falls_with_eps(case: Case) -> list[Finding]:
    """Attack by PGD on exact gradients at half, once and twice eps, and where any image can be turned grey.

    Also find samples that a single step of the gradient's sign breaks and 20 steps do not.
    """
    grey = half_range(case.threat, case.batch.x[0].numel())
    radii = sorted({case.threat.eps * factor for factor in SWEEP if case.threat.eps * factor < grey} | {case.threat.eps, grey})
    by_radius = {radius: _accuracy_under_pgd(case, radius, EXACT, f"eps sweep {radius}") for radius in radii}
    accuracies = [by_radius[radius].mean().item() for radius in radii]
    rise = max(larger - min(accuracies[: at + 1]) for at, larger in enumerate(accuracies[1:]))
    change = f"rises by {percent(rise)}" if rise >= 0 else f"falls by at least {percent(-rise)}"
    shown = ", ".join(f"{float(radius):.3g}: {percent(value)}" for radius, value in zip(radii, accuracies, strict=True))
    grey_accuracy = by_radius[grey].mean().item()
    # Grey images all look alike, so that no more than the share of one class can be correct.
    chance = case.batch.y.bincount().max().item() / len(case.batch)
    two_errors = 2 * (chance * (1 - chance) / len(case.batch)) ** 0.5
    one_step = accuracy_under(case, Fgsm(loss="margin"), case.threat, "single step")
    better = by_radius[case.threat.eps] - one_step > 0.5
    share = better.float().mean().item()
    return [
        EPS_SWEEP.finding(rise, RISE, f"accuracy under PGD {change} from a smaller to a larger ball ({shown})"),
        LARGE_EPS.finding(
            grey_accuracy,
            round(min(chance + two_errors, 1.0), 6),
            f"where PGD may turn every image grey, {percent(grey_accuracy)} of the samples stay correct",
        ),
        SINGLE_STEP.finding(
            share,
            SINGLE,
            f"a single step breaks {percent(share)} of the samples that {STEPS} steps on the same gradients do not",
            samples=case.samples(better),
        ),
    ]


def unbounded_attack_succeeds(case: Case) -> list[Finding]:
    """Attack by PGD that may change every pixel at will; attack the samples that survive with other estimators."""
    everything = half_range(case.threat, case.batch.x[0].numel()) * 2
    left = _accuracy_under_pgd(case, everything, EXACT, "unbounded")
    by_exact = left.mean().item()
    exact = UNBOUNDED.finding(
        by_exact,
        LEFT,
        f"PGD that may change every pixel at will leaves {percent(by_exact)} of the samples correct",
        samples=case.samples(left > 0.5),
    )
    for gradient in (Relaxed(unreachable="zero"), Smooth(0.1, draws=4), Es(0.1, draws=20)):
        # In the order of cost, each on the samples that survive those before it.
        if left.mean().item() <= LEFT:
            break
        rows = (left > LEFT).nonzero().flatten()
        survivors = replace(case, batch=case.batch.take(rows.tolist()))
        accuracies = _accuracy_under_pgd(survivors, everything, gradient, f"unbounded {gradient.kind}")
        left[rows] = torch.minimum(left[rows], accuracies)
    by_all = left.mean().item()
    statement = (
        f"an unbounded attack leaves {percent(by_all)} of the samples correct, whether its gradients are exact, relaxed, "
        "smoothed or estimated from function values"
    )
    return [exact, UNREACHABLE.finding(by_all, LEFT, statement, samples=case.samples(left > 0.5))]


def loss_converges(case: Case) -> list[Finding]:
    """Measure whether the loss of an ordinary PGD (20 steps of eps / 8) still rises in its last quarter."""
    rng = case.random("rising loss")
    steps, step_size = 20, case.threat.radius / 8
    z = random_start(case.batch.x, case.threat, rng)
    loss = margin_of(case)
    values = []
    for step in range(steps):
        estimate = case.estimate(z, loss, rng.child(step))
        values.append(estimate.values[0])
        z = project(z + step_size * steepest(estimate.gradients[0].nan_to_num(), case.threat.norm), case.batch.x, case.threat)
    with torch.no_grad():
        values.append(loss(case.model(z))[0])
    highest = torch.stack(values).cummax(dim=0).values
    whole = highest[-1] - highest[0]
    late = (highest[-1] - highest[-1 - steps // 4]) / whole.clamp_min(1e-12)
    share = late.mean().item()
    statement = (
        f"{percent(share)} of the rise of PGD's loss comes in the last quarter of its steps; it has not converged if much"
    )
    return [RISING_LOSS.finding(share, LATE_RISE, statement, samples=case.samples(late > LATE_RISE))]


def half_range(threat: ThreatModel, pixels: int) -> Fraction:
    """Return the radius within which every image of so many pixels can be turned grey."""
    if threat.norm == "linf":
        return Fraction(1, 2)
    return Fraction(pixels, 2) if threat.norm == "l1" else Fraction(round(500 * pixels**0.5) + 1, 1000)


def accuracy_under(case: Case, attack: Pgd | Fgsm, threat: ThreatModel, name: str) -> Tensor:
    """Return the accuracies (b,) under an attack, whose random numbers have this name.

    The clean accuracies, where no graph leads from the logits to the pixels.
    """
    rng = case.random(name)
    try:
        with case.model.metering(len(case.batch)):
            z = attack(case.model, case.batch.x.clone(), case.batch.y.clone(), threat, rng)
    except CutGradientError:
        return case.accuracy(case.batch.x)
    z = torch.where(z.isfinite(), z, case.batch.x)
    case.same_draws(name, "answers")
    return case.accuracy(z)


def _accuracy_under_pgd(case: Case, radius: Fraction, gradient: Gradient, name: str) -> Tensor:
    """Return the accuracies (b,) under PGD within a radius."""
    precision: Precision = case.precision if gradient.tolerates_rounding else "float32"
    attack = Pgd(steps=STEPS, relative_step_size=1 / 8, loss="margin", gradient=gradient, precision=precision)
    return accuracy_under(case, attack, ThreatModel(case.threat.norm, radius), name)


RADII = Check("eps sweep", accuracy_falls_with_eps, (EPS_SWEEP, LARGE_EPS, SINGLE_STEP), passes=170)
UNBOUNDED_ATTACK = Check("unbounded attack", unbounded_attack_succeeds, (UNBOUNDED, UNREACHABLE), passes=45)
CONVERGENCE = Check("rising loss", loss_converges, (RISING_LOSS,), passes=41)
