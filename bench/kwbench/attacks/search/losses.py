"""Objectives that an attack raises, from logits (b, k) and labels (b,) to one value a sample (b,).

A row's value and gradient depend on that row's logits alone, and are right at any scale of them. Where a softmax saturates in
float32 a loss goes on in a straight line, whose slope is exact in direction and does not vanish; logits that hardly differ are
drawn apart first, as softmax would see no difference.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["cross_entropy", "margin", "dlr", "probability_margin"]

# The probability of all other classes below which float32 loses the gradient of a softmax.
_SATURATED = 1e-4

# The spread of logits below which float32 loses their softmax, and what it is stretched to.
_FLAT, _STRETCHED = 1e-3, 10.0


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Minus the log-probability of the true class; torch's own, bit by bit, unless the true class is all but certain or all
    logits within 1e-3.

    With u the log-odds of the other classes it is log(1 + e^u). Below 1e-4 it follows the tangent in u, and so ends below 0.
    """
    logits = _stretched(logits)
    value = F.cross_entropy(logits, y, reduction="none")
    # Where it is above, e^u is too: nothing is saturated.
    if value.numel() and value.detach().min().item() > 2 * _SATURATED:
        return value
    return _straight_below(value, _odds(logits, other_logits(logits, y), y))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the true one: positive exactly where the sample is misclassified.

    Carlini and Wagner 2017 (arXiv:1608.04644), f6 without its hinge.
    """
    return other_logits(logits, y).amax(dim=1) - _at(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin over the gap between the largest logit and the third: the difference of logits ratio, which no scale changes.

    Croce and Hein 2020 (arXiv:2003.01690), eq. 6. Of two classes it is the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    ordered = logits.sort(dim=1, descending=True).values
    return margin(logits, y) / _not_zero(ordered[:, 0] - ordered[:, 2], ordered)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other probability minus the true one (Xie et al. 2024, arXiv:2411.15210).

    Within 1e-4 of -1 it follows its tangent in the logarithm of the distance to -1, as `cross_entropy` does.
    """
    logits = _stretched(logits)
    others = other_logits(logits, y)
    value = margin(logits.softmax(dim=1), y)
    # 1 + value is the sum of the other probabilities and the largest of them.
    counted = torch.cat([others, others.amax(dim=1, keepdim=True)], dim=1)
    return _straight_below(value + 1, _odds(logits, counted, y)) - 1


def targeted_cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The log-probability of the target class."""
    return -F.cross_entropy(_stretched(logits), target, reduction="none")


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the true one."""
    return _at(logits, target) - _at(logits, y)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The targeted margin over the gap between the largest logit and the mean of the third and fourth (eq. 7 of the paper).

    Of fewer than four classes, where it does not exist, it is the margin.
    """
    if logits.shape[1] < 4:
        return targeted_margin(logits, y, target)
    ordered = logits.sort(dim=1, descending=True).values
    gap = ordered[:, 0] - ordered[:, 2:4].mean(dim=1)
    return targeted_margin(logits, y, target) / _not_zero(gap, ordered)


def targeted_probability_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's probability minus the true one; near -1 a straight line, as `probability_margin` is."""
    logits = _stretched(logits)
    probabilities, others = logits.softmax(dim=1), other_logits(logits, y)
    value = _at(probabilities, target) - _at(probabilities, y)
    counted = torch.cat([others, _at(logits, target)[:, None]], dim=1)
    return _straight_below(value + 1, _odds(logits, counted, y)) - 1


def margin_after(loss: LossName, value: Tensor, rise: Tensor) -> Tensor:
    """What tells by its sign, roughly, who is misclassified, once a loss of `value` (b,) has risen by `rise` (b,).

    A margin, or of cross-entropy the log-odds of all other classes together, which are no less: in itself it hardly rises where
    it is small.
    """
    if loss != "cross_entropy":
        return value + rise
    saturated, start = value < _SATURATED, math.log(_SATURATED)
    above = value.clamp_min(_SATURATED)
    odds = torch.where(saturated, value / _SATURATED - 1 + start, above.expm1().log())
    return odds + rise / torch.where(saturated, _SATURATED, -(-above).expm1())


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Which samples the judge would call broken: another class wins, or a logit is not finite."""
    return (logits.argmax(dim=1) != y) | not_finite(logits)


def not_finite(logits: Tensor) -> Tensor:
    """Which rows of logits (b, k) hold one that is not finite, as (b,)."""
    # A finite sum says at once that none does; finite logits may add up to infinity.
    if math.isfinite(logits.sum().item()):
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    return ~logits.isfinite().all(dim=1)


def other_logits(logits: Tensor, y: Tensor) -> Tensor:
    """The logits (b, k) with minus infinity in the place of the true one."""
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
    """The logits; those of a row that are all within 1e-3 drawn apart, by a factor that carries no gradient."""
    low, top = logits.detach().aminmax(dim=1, keepdim=True)
    spread = top - low
    if not len(logits) or spread.min().item() >= _FLAT:
        return logits
    return torch.where(spread < _FLAT, (logits - top) * (_STRETCHED / spread.clamp_min(1e-20)), logits)


def _odds(logits: Tensor, against: Tensor, y: Tensor) -> Tensor:
    """log(sum of e^against) minus the true logit, (b,)."""
    return against.logsumexp(dim=1) - _at(logits, y)


def _straight_below(value: Tensor, log_value: Tensor) -> Tensor:
    """A value that nears e^log_value as that falls, continued by its tangent where it is below 1e-4."""
    start = math.log(_SATURATED)
    saturated = log_value.detach() < start
    if not bool(saturated.any()):
        return value
    return torch.where(saturated, _SATURATED * (1 + log_value - start), value)


def _not_zero(gap: Tensor, ordered: Tensor) -> Tensor:
    """The gap, no less than a millionth of the spread of the logits, nor than 1e-20: equal logits have no third place."""
    least = 1e-6 * (ordered[:, 0] - ordered[:, -1]).detach()
    return torch.maximum(gap, least.clamp_min(1e-20))
