"""Does autograd's gradient point to where the loss rises?"""

from dataclasses import replace

import torch
from torch import Tensor

from kwbench.attacks.search.losses import other_logits
from kwbench.checks.case import Case, percent
from kwbench.finding import Check, Criterion, Finding
from kwbench.geometry import random_start, steepest, total
from kwbench.gradients import EXACT, Es, Objective, cosines_of

# At least 95 % of 64 samples agree on sound networks (ReLU, softplus, linear; natural and adversarial training).
AGREEMENT = 0.6
# The margin of smooth networks rises as predicted, within a factor of two; with jumps it may rise by anything.
FACTOR = 2.0
# A guess from so many pairs of function values, on so many samples, is better if it leads further by this factor. On sound
# networks it is better on none or one of sixteen samples, once on four.
_GUESSES, _GUESSED = 64, 16
BETTER, MISLED = 1.25, 0.5
# Sound networks have 0.37 to 1, those of MNIST at least 0.3; a hidden wave leaves 0.05 or less.
COHERENCE = 0.15

SHATTERED = Criterion("shattered gradients", kind="masking", role="misleading")
MISLEADING = Criterion("misleading gradients", kind="masking", role="misleading")
INCOHERENT = Criterion("incoherent gradients", kind="masking", role="misleading")


def gradients_predict_the_rise(case: Case) -> list[Finding]:
    """Find shattered gradients (Athalye et al. 2018, arXiv:1802.00420): does the margin rise as the gradient predicts?

    Central differences over eps / 100 along the steepest direction, clipped to the pixel range, under the same draws of the
    model.
    """
    rng = case.random(SHATTERED.name)
    x = random_start(case.batch.x, case.threat, rng)
    objective = _lead_of_runner_up(case, x)
    case.same_draws(SHATTERED.name)
    gradient = case.estimate(x, objective, rng).gradients[0]
    direction = steepest(gradient.nan_to_num(), case.threat.norm)
    step = case.threat.radius / 100
    ends = [(x + sign * step * direction).clamp(0, 1) for sign in (1, -1)]
    predicted = total(gradient * (ends[0] - ends[1]))
    ahead, behind = case.values_under_same_draws(SHATTERED.name, objective, ends)
    rise = ahead - behind
    agrees = (rise > predicted / FACTOR) & (rise < predicted * FACTOR) & (predicted > 0)
    share = agrees.float().mean().item()
    statement = (
        f"on {percent(share)} of the samples the margin rises along autograd's gradient as predicted, within a factor of "
        f"{FACTOR:g}; on networks without jumps it does on nearly all"
    )
    return [SHATTERED.finding(share, AGREEMENT, statement, fires=share < AGREEMENT, samples=case.samples(~agrees))]


def gradients_lead_across_the_ball(case: Case) -> list[Finding]:
    """Find misleading gradients: does a crude guess from function values lead further across the ball than autograd?

    The guess is a mean over 64 antithetic pairs (Es, sigma eps / 4). In d dimensions its cosine with a true gradient is about
    sqrt(64 / d), so that it hardly leads further than one. Both are followed over eps, under the same draws of the model.
    """
    few = replace(case, batch=case.batch.take(list(range(min(_GUESSED, len(case.batch.y))))))
    rng, x = few.random(MISLEADING.name), few.batch.x
    objective = _lead_of_runner_up(few, x)
    rises = []
    for gradient in (EXACT, Es(relative_sigma=0.25, draws=_GUESSES).within(case.threat, x.shape[1:])):
        few.same_draws(MISLEADING.name)
        direction = steepest(few.estimate(x, objective, rng, gradient).gradients[0].nan_to_num(), case.threat.norm)
        ends = [(x + sign * case.threat.radius / 2 * direction).clamp(0, 1) for sign in (1, -1)]
        ahead, behind = few.values_under_same_draws(MISLEADING.name, objective, ends)
        rises.append(ahead - behind)
    by_autograd, by_guess = rises
    better = by_guess > BETTER * by_autograd.clamp_min(0) + 1e-6 * ahead.abs()
    share = better.float().mean().item()
    statement = (
        f"on {percent(share)} of {len(x)} samples a guess from {2 * _GUESSES} function values raises the margin further across "
        "the ball than autograd's gradient does"
    )
    return [MISLEADING.finding(share, MISLED, statement, samples=few.samples(better))]


def gradients_agree_with_each_other(case: Case) -> list[Finding]:
    """Find incoherent gradients: the mean cosine of autograd's gradients at two random points near an image.

    Where they have nothing in common, neither leads across the ball. The points have Gaussian distances of eps / 4, mirrored
    at the pixel's value where they would leave the pixel range, and meet the same draws of the model.
    """
    rng, x = case.random(INCOHERENT.name), case.batch.x
    objective = _lead_of_runner_up(case, x)
    gradients = []
    for point in range(2):
        shift = case.threat.pixel_radius(x[0].numel()) / 4 * rng.normal(point, x.shape[1:]).to(x)
        within_range = ((x + shift) - 0.5).abs() <= 0.5
        case.same_draws(INCOHERENT.name)
        images = torch.where(within_range, x + shift, x - shift).clamp(0, 1)
        gradients.append(case.estimate(images, objective, rng).gradients)
    cosines = cosines_of(*gradients)[0]
    defined = ~cosines.isnan()
    figure = cosines[defined].mean().item() if bool(defined.any()) else 1.0
    statement = f"gradients at two points near an image have a cosine of {figure:.2f}; near 0 neither leads anywhere"
    samples = case.samples(cosines < COHERENCE)
    return [INCOHERENT.finding(figure, COHERENCE, statement, fires=figure < COHERENCE, samples=samples)]


def _lead_of_runner_up(case: Case, x: Tensor) -> Objective:
    """Return the lead of the runner-up class at x (b, c, h, w) over the label, as an objective of logits (b, k).

    The class stays fixed: a change of class would be a kink of the loss, not of the network.
    """
    with torch.no_grad():
        logits = case.model(x)
    y = case.batch.y
    runner_up = other_logits(logits, y).argmax(dim=1)

    def lead(logits: Tensor) -> Tensor:
        chosen = logits.gather(1, torch.stack([runner_up, y], dim=1))
        return (chosen[:, 0] - chosen[:, 1])[None]

    return lead


PREDICTION = Check("shattered gradients", gradients_predict_the_rise, (SHATTERED,), passes=5)
GUIDANCE = Check("misleading gradients", gradients_lead_across_the_ball, (MISLEADING,), passes=40)
COHERENT = Check("incoherent gradients", gradients_agree_with_each_other, (INCOHERENT,), passes=5)
