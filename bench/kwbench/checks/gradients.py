"""Checks of the gradient that autograd gives: is it there, does it say where the loss rises, is it the same twice?"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.attacks.search.losses import margin, other_logits
from kwbench.checks.case import Case, percent
from kwbench.finding import Finding
from kwbench.geometry import project, random_start, steepest, total
from kwbench.gradients import EXACT, Eot, Es, Objective, Smooth, cosines_of

# Float32 networks have no flat places: a ReLU network needs all units of a layer dead.
ZERO_SHARE = 0.01
# Of 64 samples of sound networks (ReLU, softplus, linear; natural and adversarial training) at least 95 % agree.
AGREEMENT = 0.6
# Smooth networks rise by what autograd says, within a factor of two; jumps make it any number.
FACTOR = 2.0
# Random directions of d numbers have a cosine of 1 / sqrt(d); below this most of the gradient is noise.
COSINE = 0.2
# Sound networks stay below 0.08. (Pintor et al. 2022, arXiv:2106.09947, I4, look at the last tenth.)
RISE = 0.15
# A float32 network without steps answers otherwise as soon as a pixel moves.
PLATEAU_SHARE = 0.05
# A guess from so many pairs of function values, on so many samples, is ahead if it leads further by this factor. Of sixteen
# samples of sound networks it is on none or one, once on four.
_GUESSES, _GUESSED = 64, 16
AHEAD, MISLED = 1.25, 0.5
# Sound networks have 0.37 to 1, those of MNIST at 0.3 least; a hidden wave leaves 0.05 or less.
COHERENCE = 0.15
# Draws of an averaged gradient, as many as strong evaluations can afford at every step.
MEAN_DRAWS = 16


def gradient_is_there(case: Case) -> list[Finding]:
    """Zero or non-finite gradients of the margin at a random point of the ball; where they are zero, other estimators."""
    rng = case.random("zero gradients")
    x = random_start(case.batch.x, case.threat, rng)
    loss = _margin(case)
    lost = _lost(case.slope(x, loss, rng).gradients[0])
    share = lost.float().mean().item()
    found = [
        case.finding(
            "zero gradients",
            share,
            ZERO_SHARE,
            f"autograd's gradient of the margin is zero or not finite on {percent(share)} of the samples",
            "masking",
            concerned=lost,
        )
    ]
    blind = lost
    if bool(lost.any()):
        sigma = case.threat.radius / 2 if case.threat.norm == "linf" else case.threat.radius / x[0].numel() ** 0.5
        for gradient in (Smooth(sigma, draws=4), Es(sigma, draws=10)):
            blind = blind & _lost(case.slope(x, loss, rng, gradient).gradients[0])
    share = blind.float().mean().item()
    statement = f"no estimator, with or without autograd, sees any slope of the margin on {percent(share)} of the samples"
    return [*found, case.finding("flat", share, ZERO_SHARE, statement, "doubt", concerned=blind)]


def gradient_is_true(case: Case) -> list[Finding]:
    """Shattered gradients (Athalye et al. 2018, arXiv:1802.00420): does the margin rise along the gradient as autograd says?

    Central differences over eps / 100 along the steepest direction, cut to the pixel range, under one draw of the model's
    randomness.
    """
    rng = case.random("shattered gradients")
    x = random_start(case.batch.x, case.threat, rng)
    rival = _lead_of_rival(case, x)
    case.same_draws("shattered gradients")
    gradient = case.slope(x, rival, rng).gradients[0]
    direction = steepest(gradient.nan_to_num(), case.threat.norm)
    step = case.threat.radius / 100
    ends = [(x + sign * step * direction).clamp(0, 1) for sign in (1, -1)]
    promised = total(gradient * (ends[0] - ends[1]))
    first, second = _under_same_draws(case, "shattered gradients", rival, ends)
    rise = first - second
    agrees = (rise > promised / FACTOR) & (rise < promised * FACTOR) & (promised > 0)
    share = agrees.float().mean().item()
    statement = (
        f"on {percent(share)} of the samples the margin rises along autograd's gradient as much as it says, within a factor of "
        f"{FACTOR:g}; for a network without jumps it is nearly all"
    )
    return [
        case.finding("shattered gradients", share, AGREEMENT, statement, "masking", fires=share < AGREEMENT, concerned=~agrees)
    ]


def gradient_leads(case: Case) -> list[Finding]:
    """Misleading gradients: does a crude guess from function values lead further across the ball than autograd's gradient?

    The guess is a mean over 64 antithetic pairs (Es, sigma eps / 4), which in d dimensions finds about sqrt(64 / d) of a true
    gradient, so that it hardly gets ahead of one. Both are followed over eps, under one draw of the model's randomness.
    """
    name = "misleading gradients"
    few = replace(case, batch=case.batch.take(list(range(min(_GUESSED, len(case.batch.y))))))
    rng, x = few.random(name), few.batch.x
    rival = _lead_of_rival(few, x)
    rises = []
    for gradient in (EXACT, Es(relative_sigma=0.25, draws=_GUESSES).within(case.threat, x.shape[1:])):
        few.same_draws(name)
        direction = steepest(few.slope(x, rival, rng, gradient).gradients[0].nan_to_num(), case.threat.norm)
        ends = [(x + sign * case.threat.radius / 2 * direction).clamp(0, 1) for sign in (1, -1)]
        first, second = _under_same_draws(few, name, rival, ends)
        rises.append(first - second)
    own, guessed = rises
    ahead = guessed > AHEAD * own.clamp_min(0) + 1e-6 * first.abs()
    share = ahead.float().mean().item()
    statement = (
        f"on {percent(share)} of {len(x)} samples a guess from {2 * _GUESSES} function values raises the margin further across "
        "the ball than autograd's gradient does"
    )
    return [few.finding(name, share, MISLED, statement, "masking", concerned=ahead)]


def gradient_is_coherent(case: Case) -> list[Finding]:
    """Incoherent gradients: the mean cosine of autograd's gradients at two random points near an image, under one draw of the
    model's randomness. Where they have nothing in common, neither leads across the ball.

    The points are at Gaussian distances of eps / 4, mirrored at the pixel's value where they would leave the pixel range.
    """
    name = "incoherent gradients"
    rng, x = case.random(name), case.batch.x
    rival = _lead_of_rival(case, x)
    gradients = []
    for point in range(2):
        shift = case.threat.pixel_radius(x[0].numel()) / 4 * rng.normal(point, x.shape[1:]).to(x)
        within_range = ((x + shift) - 0.5).abs() <= 0.5
        case.same_draws(name)
        gradients.append(case.slope(torch.where(within_range, x + shift, x - shift).clamp(0, 1), rival, rng).gradients)
    cosines = cosines_of(*gradients)[0]
    told = ~cosines.isnan()
    figure = cosines[told].mean().item() if bool(told.any()) else 1.0
    statement = (
        f"gradients at two points in the middle of the ball have a cosine of {figure:.2f}: near 0 neither leads anywhere"
    )
    concerned = cosines < COHERENCE
    return [case.finding(name, figure, COHERENCE, statement, "masking", fires=figure < COHERENCE, concerned=concerned)]


def _under_same_draws(case: Case, check: str, objective: Objective, images: Sequence[Tensor]) -> list[Tensor]:
    """The objective (b,) at each of these batches of images, all of which meet the same randomness of the model."""
    values = []
    for each in images:
        case.same_draws(check)
        with torch.no_grad():
            values.append(objective(case.model(each))[0])
    return values


def _lead_of_rival(case: Case, x: Tensor) -> Objective:
    """By how much the runner-up at x (b, c, h, w) leads: one and the same class all along, for another would be a kink of the
    loss, not of the network."""
    with torch.no_grad():
        logits = case.model(x)
    y = case.batch.y
    other = other_logits(logits, y).argmax(dim=1)

    def rival(logits: Tensor) -> Tensor:
        chosen = logits.gather(1, torch.stack([other, y], dim=1))
        return (chosen[:, 0] - chosen[:, 1])[None]

    return rival


def gradient_is_one(case: Case) -> list[Finding]:
    """For stochastic models: the cosine of gradients from two independent draws, and of two means of 16 draws."""
    if not case.model.stochastic:
        return []
    rng = case.random("gradient noise")
    loss = _margin(case)
    found = []
    for name, gradient, draws in (("gradient noise", EXACT, 1), ("averaged gradient noise", Eot(draws=MEAN_DRAWS), MEAN_DRAWS)):
        first, second = (case.slope(case.batch.x, loss, rng, gradient).gradients[0].flatten(1) for _ in range(2))
        cosine = F.cosine_similarity(first.double(), second.double(), dim=1, eps=1e-300).nan_to_num()
        figure = cosine.mean().item()
        statement = (
            f"gradients from {draws} draw{'s' if draws > 1 else ''} and from as many others have a cosine of {figure:.2f}: "
            "near 0 is noise"
        )
        found.append(case.finding(name, figure, COSINE, statement, "masking", fires=figure < COSINE, concerned=cosine < COSINE))
    return found


def loss_has_settled(case: Case) -> list[Finding]:
    """Does the loss of an ordinary PGD (20 steps of eps / 8) still rise in its last quarter?"""
    rng = case.random("rising loss")
    steps, step_size = 20, case.threat.radius / 8
    z = random_start(case.batch.x, case.threat, rng)
    loss = _margin(case)
    values = []
    for step in range(steps):
        estimate = case.slope(z, loss, rng.child(step))
        values.append(estimate.values[0])
        z = project(z + step_size * steepest(estimate.gradients[0].nan_to_num(), case.threat.norm), case.batch.x, case.threat)
    with torch.no_grad():
        values.append(loss(case.model(z))[0])
    highest = torch.stack(values).cummax(dim=0).values
    whole = highest[-1] - highest[0]
    late = (highest[-1] - highest[-1 - steps // 4]) / whole.clamp_min(1e-12)
    share = late.mean().item()
    statement = (
        f"the last quarter of PGD's steps brings {percent(share)} of the rise of its loss; a finished attack gains little"
    )
    return [case.finding("rising loss", share, RISE, statement, "masking", concerned=late > RISE)]


def answer_moves_with_the_image(case: Case) -> list[Finding]:
    """Plateaus: do the logits stay the same, to the last bit, when every pixel moves by eps / 1000?"""
    rng = case.random("plateaus")
    x = random_start(case.batch.x, case.threat, rng)
    signs = torch.where(rng.uniform("signs", x.shape[1:]) < 0.5, -1.0, 1.0).to(x)
    answers = []
    for shift in (0.0, case.threat.pixel_radius(x[0].numel()) / 1000):
        case.same_draws("plateaus")
        with torch.no_grad():
            answers.append(case.model((x + shift * signs).clamp(0, 1)))
    still = (answers[0] == answers[1]).all(dim=1)
    share = still.float().mean().item()
    statement = f"the logits of {percent(share)} of the samples do not change at all when every pixel moves by a little"
    return [case.finding("plateaus", share, PLATEAU_SHARE, statement, "masking", concerned=still)]


def _margin(case: Case) -> Objective:
    return lambda logits: margin(logits, case.batch.y)[None]


def _lost(gradient: Tensor) -> Tensor:
    """Which gradients (b, ...) are zero or hold a number that is not finite."""
    flat = gradient.flatten(1)
    return (flat == 0).all(dim=1) | ~flat.isfinite().all(dim=1)
