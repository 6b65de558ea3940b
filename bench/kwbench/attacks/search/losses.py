"""Losses that an attack maximizes: from logits (b, k) and labels (b,) to one value a sample (b,).

The value and gradient of a row depend on its logits alone, and are accurate at any scale of them. If a softmax saturates in
float32, the loss continues along its tangent, whose gradient has the exact direction and does not vanish. Logits that are
nearly equal are spread first, because softmax would not distinguish them.

Most rows need no such care. A CPU looks whether any does, and else spares the work. A GPU would have to be waited for, so that
there all rows are computed with care, which does not change those that need none.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.model import are_answers

LossName = Literal["cross_entropy", "margin", "dlr", "probability_margin"]

# The total probability of the other classes below which a softmax in float32 loses its gradient.
_SATURATED = 1e-4

# The spread of logits below which their softmax in float32 is constant, and the spread that they are stretched to.
_FLAT, _STRETCHED = 1e-3, 10.0


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return minus the log-probability of the true class.

    Bit-identical to torch's cross-entropy unless the true class has a probability of nearly 1 or all logits lie within 1e-3.
    With u the log-odds of the other classes it is log(1 + e^u). Below 1e-4 it follows the tangent in u, and may become
    negative.
    """
    logits = _stretched(logits)
    value = F.cross_entropy(logits, y, reduction="none")
    # If the value is above the threshold, so is e^u, and nothing is saturated.
    if value.is_cpu and value.numel() and value.detach().min().item() > 2 * _SATURATED:
        return value
    return _straight_below(value, _odds(logits, other_logits(logits, y), y))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest other logit minus the true one: positive exactly if the sample is misclassified.

    Carlini and Wagner 2017 (arXiv:1608.04644), f6 without its hinge.
    """
    return other_logits(logits, y).amax(dim=1) - _at(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio: the margin over the gap between the largest logit and the third.

    It is invariant to the scale of the logits. Croce and Hein 2020 (arXiv:2003.01690), eq. 6. With two classes it is the
    margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, y) / _not_zero(ordered[:, 0] - ordered[:, 2], ordered)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest other probability minus the true one (Xie et al. 2024, arXiv:2411.15210).

    Within 1e-4 of -1 it follows its tangent in the logarithm of the distance to -1, like `cross_entropy`.
    """
    logits = _stretched(logits)
    others = other_logits(logits, y)
    value = margin(logits.softmax(dim=1), y)
    # 1 + value is the sum of the other probabilities and the largest of them.
    counted = torch.cat([others, others.amax(dim=1, keepdim=True)], dim=1)
    return _straight_below(value + 1, _odds(logits, counted, y)) - 1


def targeted_cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the log-probability of the target class."""
    return -F.cross_entropy(_stretched(logits), target, reduction="none")


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the target's logit minus the true one."""
    return _at(logits, target) - _at(logits, y)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the targeted margin over the gap between the largest logit and the mean of the third and fourth.

    Croce and Hein 2020 (arXiv:2003.01690), eq. 7. With fewer than four classes, where it is undefined, it is the margin.
    """
    if logits.shape[1] < 4:
        return targeted_margin(logits, y, target)
    ordered = logits.sort(dim=1, descending=True).values
    gap = ordered[:, 0] - ordered[:, 2:4].mean(dim=1)
    return targeted_margin(logits, y, target) / _not_zero(gap, ordered)


def targeted_probability_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the target's probability minus the true one; near -1 its tangent, like `probability_margin`."""
    logits = _stretched(logits)
    probabilities, others = logits.softmax(dim=1), other_logits(logits, y)
    value = _at(probabilities, target) - _at(probabilities, y)
    counted = torch.cat([others, _at(logits, target)[:, None]], dim=1)
    return _straight_below(value + 1, _odds(logits, counted, y)) - 1


def margin_after(loss: LossName, value: Tensor, rise: Tensor) -> Tensor:
    """Return the approximate margin (b,) once a loss of `value` (b,) has risen by `rise` (b,); its sign predicts
    misclassification.

    For cross-entropy it is the log-odds of all other classes together, an upper bound of the margin, because the loss itself
    hardly rises while it is small.
    """
    if loss != "cross_entropy":
        return value + rise
    saturated, start = value < _SATURATED, math.log(_SATURATED)
    above = value.clamp_min(_SATURATED)
    odds = torch.where(saturated, value / _SATURATED - 1 + start, above.expm1().log())
    return odds + rise / torch.where(saturated, _SATURATED, -(-above).expm1())


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Return which samples the judge would call broken, as (b,): another class wins, or the logits are no answer."""
    return (logits.argmax(dim=1) != y) | no_answer(logits)


def no_answer(logits: Tensor) -> Tensor:
    """Return which rows of logits (b, k) hold NaN or have no finite largest logit, as (b,)."""
    # A finite sum excludes such values cheaply; an infinite one does not prove them: finite logits may overflow.
    if logits.is_cpu and math.isfinite(logits.sum().item()):
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    return ~are_answers(logits)


def other_logits(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logits (b, k) with the true one replaced by minus infinity."""
    return logits.scatter(1, y[:, None], -torch.inf)


LOSSES: dict[LossName, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "probability_margin": probability_margin,
}
TARGETED: dict[LossName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
    "probability_margin": targeted_probability_margin,
}


def _at(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None]).squeeze(1)


def _stretched(logits: Tensor) -> Tensor:
    """Return the logits, rows whose logits all lie within 1e-3 stretched by a factor that carries no gradient."""
    low, top = logits.detach().aminmax(dim=1, keepdim=True)
    if not logits.is_cpu or (len(logits) and low.min().item() == -torch.inf):
        low = torch.where(logits.detach() == -torch.inf, torch.inf, logits.detach()).amin(dim=1, keepdim=True)
    spread = top - low
    if not len(logits) or (logits.is_cpu and spread.min().item() >= _FLAT):
        return logits
    return torch.where(spread < _FLAT, (logits - top) * (_STRETCHED / spread.clamp_min(1e-20)), logits)


def _odds(logits: Tensor, against: Tensor, y: Tensor) -> Tensor:
    """Return log(sum of e^against) minus the true logit, as (b,)."""
    return against.logsumexp(dim=1) - _at(logits, y)


def _straight_below(value: Tensor, log_value: Tensor) -> Tensor:
    """Return `value`, which approaches e^log_value as that falls, replaced by its tangent below 1e-4."""
    start = math.log(_SATURATED)
    saturated = log_value.detach() < start
    if value.is_cpu and not bool(saturated.any()):
        return value
    return torch.where(saturated, _SATURATED * (1 + log_value - start), value)


def _not_zero(gap: Tensor, ordered: Tensor) -> Tensor:
    """Return the gap, at least a millionth of the spread of the logits and at least 1e-20: equal logits would give zero."""
    lowest = torch.where(ordered.isinf(), torch.inf, ordered).amin(dim=1)  # of the classes that are not masked
    least = 1e-6 * (ordered[:, 0] - lowest).detach()
    # A gap to a masked class is infinite: so few classes are left that the ratio is the margin.
    gap = torch.where(gap.isinf(), 1.0, gap)
    return torch.maximum(gap, least.clamp_min(1e-20))
