"""Distances, projections, steepest steps and random starts: the only place that knows what a ball is.

Images are float32 (b, c, h, w) in [0, 1]; distances are (b,). Every function acts on each sample alone.
"""

import torch
from torch import Tensor

from kwbench.randomness import SampleRandom
from kwbench.threat import Norm, ThreatModel

# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 1

# Float32 rounding of x + delta; what the judge forgives, in the norm's own unit.
TOLERANCE = 1e-6


def norms(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each sample of (b, ...), as (b,)."""
    if norm == "linf":
        return delta.flatten(1).abs().amax(dim=1)
    if norm == "l2":
        return total(delta.square()).sqrt()
    return total(delta.abs())


def total(values: Tensor) -> Tensor:
    """The sum over each sample of (b, ...), as (b,).

    Rows of pixels first: the sum of all values of a large image is split among threads where it stands alone, and rounds
    otherwise.
    """
    return values.sum(dim=-1).flatten(1).sum(dim=1) if values.dim() > 2 else values.sum(dim=1)


def distance(x: Tensor, z: Tensor, norm: Norm) -> Tensor:
    """How far each z lies from its x, as (b,). Measured in float64: the judge must not add its own rounding."""
    return norms(z.double() - x.double(), norm)


def project(z: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """The z moved into the ball around x and into [0, 1].

    linf and l2: the nearest point of the ball, then cut to the box, which never lengthens the perturbation.
    l1: likewise; the nearest point of the ball follows Duchi et al. 2008 (ICML). Points inside stay where they are.
    """
    if threat.norm == "linf":
        eps = threat.radius
        return z.clamp(x - eps, x + eps).clamp_(0, 1)
    return _pulled_in(z, x, threat, threat.radius, torch.inf)


def settle(z: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """The z pulled back onto the ball where another library's float32 rounding left them outside: beyond what the judge
    forgives, by less than 1e-5 of eps. What lies farther out stays there, for the judge to refuse.
    """
    return _pulled_in(z, x, threat, threat.radius + TOLERANCE, threat.radius * (1 + 1e-5))


def _pulled_in(z: Tensor, x: Tensor, threat: ThreatModel, beyond: float, limit: float) -> Tensor:
    """The z in [0, 1], those at distances from `beyond` to `limit` moved into the ball."""
    # Measured as the judge measures: in float32 the norm of many pixels is off by more than the tolerance.
    delta = z.double() - x.double()
    length = norms(delta, threat.norm)
    outside = ((length > beyond) & (length <= limit)).view(-1, 1, 1, 1)
    # Rounding the result to float32 must not lead out again.
    eps = threat.radius * (1 - 1e-7)
    if threat.norm == "linf":
        onto = delta.clamp(-eps, eps)
    elif threat.norm == "l2":
        onto = delta * _column(eps / length.clamp_min(1e-300), delta)
    else:
        onto = _onto_l1_ball(delta, threat.radius * (1 - 1e-6))
    return torch.where(outside, (x.double() + onto).to(z.dtype), z).clamp(0, 1)


def _onto_l1_ball(delta: Tensor, eps: float) -> Tensor:
    flat = delta.flatten(1)
    magnitude = flat.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    excess = ordered.cumsum(dim=1) - eps
    rank = torch.arange(1, flat.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    last = (ordered * rank > excess).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(1, last - 1) / last).clamp_min(0)
    return (flat.sign() * (magnitude - threshold).clamp_min(0)).view_as(delta)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of unit norm along which a linear function with this gradient rises fastest; zero where it is flat.

    It does not depend on the gradient's scale: those of a saturated model are tiny, and point the right way. A gradient that
    is not a number has no direction: the step is not a number either, and the judge refuses where it leads.
    """
    if norm == "linf":
        return _sign(gradient)
    if norm == "l2":
        scaled = gradient / _column(norms(gradient, "linf").clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
        return scaled / _column(norms(scaled, "l2").clamp_min(1e-30), gradient)
    flat = gradient.flatten(1)
    largest = flat.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, largest, _sign(flat.gather(1, largest))).view_as(gradient)


def _sign(values: Tensor) -> Tensor:
    # torch's sign of not-a-number is 0.
    return torch.where(values.isnan(), values, values.sign())


def random_start(x: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
    """A point drawn uniformly from the ball around each x, cut to [0, 1]."""
    shape, eps = x.shape[1:], threat.radius
    if threat.norm == "linf":
        delta = rng.uniform("start", shape, -eps, eps).to(x.device)
    else:
        # In double: float32 powers and logarithms round by the place in a batch, vectors one way, their remainder another.
        length = rng.uniform("length", (1,)).double().pow(1 / shape.numel()).float().to(x.device) * eps
        if threat.norm == "l2":
            direction = steepest(rng.normal("start", shape).to(x.device), "l2")
        else:
            # Signed exponentials over their sum are uniform on the l1 sphere.
            uniform = rng.uniform("start", shape, -1, 1).double()
            exponential = (uniform.sign() * -(1 - uniform.abs()).clamp_min(1e-7).log()).float().to(x.device)
            direction = exponential / _column(norms(exponential, "l1"), exponential)
        delta = direction * length.view(-1, 1, 1, 1)
    return project(x + delta, x, threat)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *([1] * (like.dim() - 1)))
