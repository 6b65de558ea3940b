"""Is there a gradient at all, and do the logits react to small changes of the image?"""

import torch
from torch import Tensor

from kwbench.attacks.search.losses import margin
from kwbench.checks.case import Case, percent
from kwbench.finding import Check, Criterion, Finding
from kwbench.geometry import random_start
from kwbench.gradients import CutGradientError, Es, Objective, Smooth, autograd_estimate

# Float32 networks have no flat regions: a ReLU network needs all units of a layer dead.
ZERO_SHARE = 0.01
# The logits of a float32 network without steps change as soon as a pixel does.
PLATEAU_SHARE = 0.05

ZERO_GRADIENTS = Criterion("zero gradients", kind="masking")
FLAT = Criterion("flat", kind="doubt", remedy="an estimator that finds a slope where none of ours does")
PLATEAUS = Criterion("plateaus", kind="masking", role="misleading")


def gradients_exist(case: Case) -> list[Finding]:
    """Find zero or non-finite gradients of the margin at a random point of the ball; there, try other estimators."""
    rng = case.random("zero gradients")
    x = random_start(case.batch.x, case.threat, rng)
    loss = margin_of(case)
    try:
        missing = _zero_or_not_finite(autograd_estimate(case.model, x, loss).gradients[0])
    except CutGradientError:
        missing = torch.ones(len(x), dtype=torch.bool, device=x.device)
    share = missing.float().mean().item()
    zero = ZERO_GRADIENTS.finding(
        share,
        ZERO_SHARE,
        f"autograd's gradient of the margin is zero or not finite on {percent(share)} of the samples",
        samples=case.samples(missing),
    )
    flat = missing
    if bool(missing.any()):
        sigma = case.threat.radius / 2 if case.threat.norm == "linf" else case.threat.radius / x[0].numel() ** 0.5
        for gradient in (Smooth(sigma, draws=4), Es(sigma, draws=10)):
            flat = flat & _zero_or_not_finite(case.estimate(x, loss, rng, gradient).gradients[0])
    share = flat.float().mean().item()
    statement = f"no estimator, with or without autograd, finds a slope of the margin on {percent(share)} of the samples"
    return [zero, FLAT.finding(share, ZERO_SHARE, statement, samples=case.samples(flat))]


def logits_react(case: Case) -> list[Finding]:
    """Find plateaus: samples whose logits stay bit-identical when every pixel changes by eps / 1000."""
    rng = case.random("plateaus")
    x = random_start(case.batch.x, case.threat, rng)
    signs = torch.where(rng.uniform("signs", x.shape[1:]) < 0.5, -1.0, 1.0).to(x)
    outputs = []
    for shift in (0.0, case.threat.pixel_radius(x[0].numel()) / 1000):
        case.same_draws("plateaus")
        with torch.no_grad():
            outputs.append(case.model((x + shift * signs).clamp(0, 1)))
    constant = (outputs[0] == outputs[1]).all(dim=1)
    share = constant.float().mean().item()
    statement = f"the logits of {percent(share)} of the samples do not change when every pixel changes by a little"
    return [PLATEAUS.finding(share, PLATEAU_SHARE, statement, samples=case.samples(constant))]


def margin_of(case: Case) -> Objective:
    """Return the margin loss for the labels of the case, as an objective of logits (b, k)."""
    return lambda logits: margin(logits, case.batch.y)[None]


def _zero_or_not_finite(gradients: Tensor) -> Tensor:
    """Return which gradients (b, ...) are zero or hold a number that is not finite, as (b,)."""
    flat = gradients.flatten(1)
    return (flat == 0).all(dim=1) | ~flat.isfinite().all(dim=1)


EXISTENCE = Check("zero gradients", gradients_exist, (ZERO_GRADIENTS, FLAT), passes=2)
REACTION = Check("plateaus", logits_react, (PLATEAUS,), passes=2)
