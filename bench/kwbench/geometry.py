"""Distances, projections, steepest directions and random starts: the only module that knows the shape of a ball.

Images are float32 (b, c, h, w) in [0, 1]; distances are (b,). Every function treats each sample independently.
"""

import torch
from torch import Tensor

from kwbench.randomness import SampleRandom
from kwbench.threat import TOLERANCE, Norm, ThreatModel

# Raise it with every change that can change an outcome; see tests/golden.
REVISION = 1


def norms(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each sample of (b, ...), as (b,)."""
    if norm == "linf":
        return delta.flatten(1).abs().amax(dim=1)
    if norm == "l2":
        return total(delta.square()).sqrt()
    return total(delta.abs())


def total(values: Tensor) -> Tensor:
    """Return the sum over each sample of (b, ...), as (b,).

    Rows of pixels are summed first. Torch splits the sum of all values of a large image among threads if it is alone in a
    batch, which would change its rounding.
    """
    return values.sum(dim=-1).flatten(1).sum(dim=1) if values.dim() > 2 else values.sum(dim=1)


def distance(x: Tensor, z: Tensor, norm: Norm) -> Tensor:
    """Return the distance of each z from its x, as (b,), in float64, so that the judge adds no rounding of its own."""
    return norms(z.double() - x.double(), norm)


def project(z: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Return z projected into the ball around x, then clipped to [0, 1], which never lengthens the perturbation.

    The projection is the nearest point of the ball; in l1 by Duchi et al. 2008 (ICML). Points inside do not move.
    """
    if threat.norm == "linf":
        eps = threat.radius
        return z.clamp(x - eps, x + eps).clamp_(0, 1)
    return _pulled_in(z, x, threat, threat.radius, torch.inf)


def settle(z: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Return z projected into the ball if the float32 rounding of another library left it outside.

    Moves points that lie beyond the judge's tolerance by less than 1e-5 of eps. Points farther out stay, for the judge to
    refuse.
    """
    return _pulled_in(z, x, threat, threat.radius + TOLERANCE, threat.radius * (1 + 1e-5))


def _pulled_in(z: Tensor, x: Tensor, threat: ThreatModel, beyond: float, limit: float) -> Tensor:
    """Return z clipped to [0, 1], points at distances above `beyond` and up to `limit` moved into the ball."""
    # In float64 like the judge: in float32 the norm of many pixels is off by more than the tolerance.
    delta = z.double() - x.double()
    length = norms(delta, threat.norm)
    outside = ((length > beyond) & (length <= limit)).view(-1, 1, 1, 1)
    # Rounding the result to float32 must not leave the ball.
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
    """Return the direction of unit norm along which a linear function with this gradient rises fastest; zero if it is zero.

    It does not depend on the gradient's scale: gradients of a saturated model are tiny but point the right way. A NaN gradient
    gives NaN, and the judge refuses the image that it leads to.
    """
    if norm == "linf":
        return _sign(gradient)
    if norm == "l2":
        scaled = gradient / _column(norms(gradient, "linf").clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
        return scaled / _column(norms(scaled, "l2").clamp_min(1e-30), gradient)
    flat = gradient.flatten(1)
    largest = flat.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, largest, _sign(flat.gather(1, largest))).view_as(gradient)


def finite_slopes(gradient: Tensor) -> Tensor:
    """Return a gradient (b, ...) with NaN as zero, and an infinite slope as the steepest finite one of its sample, or as 1.

    A finite gradient is returned as it is. The slope of a root at zero is infinite, and only its sign can be followed; complex
    values have no sign, so that they become zero.
    """
    # A finite sum excludes NaN and infinity cheaply; another sum does not prove them, because finite values may overflow.
    # A GPU would have to be waited for.
    if gradient.is_cpu and (bool(gradient.sum().isfinite()) or bool(gradient.isfinite().all())):
        return gradient
    finite = torch.where(gradient.isfinite(), gradient, 0)
    if gradient.is_complex() or gradient.dim() < 2:
        return finite
    steepest_slope = norms(finite, "linf")
    steepest_slope = torch.where(steepest_slope > 0, steepest_slope, 1)
    return torch.where(gradient.isinf(), gradient.sign() * _column(steepest_slope, gradient), finite)


def _sign(values: Tensor) -> Tensor:
    # torch.sign(NaN) is 0.
    return torch.where(values.isnan(), values, values.sign())


def random_start(x: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
    """Return a point drawn uniformly from the ball around each x, clipped to [0, 1]."""
    shape, eps = x.shape[1:], threat.radius
    if threat.norm == "linf":
        delta = rng.uniform("start", shape, -eps, eps, device=x.device)
    else:
        # In float64: float32 powers and logarithms round differently in vectorized loops and in their remainders, so that the
        # result would depend on the position in the batch.
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
