"""Steps: sign, rounding, clamping, thresholds, whole numbers from floats."""

from typing import Any

import torch

from kwbench.relaxation.backward import straight
from kwbench.relaxation.context import Call, Context, flat, is_float, rule


@rule("sign.default", "sgn.default", unless=flat)
def _sign(context: Context, call: Call) -> Any:
    x = call.args[0]
    context.note(call)
    return straight(call.hard(), torch.tanh(x / context.scale(x)))


@rule("heaviside.default", unless=flat)
def _heaviside(context: Context, call: Call) -> Any:
    x = call.args[0]
    context.note(call)
    return straight(call.hard(), torch.sigmoid(x / context.scale(x)))


@rule("round.default", "round.decimals", "floor.default", "ceil.default", "trunc.default", "fix.default", unless=flat)
def _round(context: Context, call: Call) -> Any:
    context.note(call)
    return straight(call.hard(), call.args[0])


@rule("frac.default", "remainder.Scalar", "remainder.Tensor", "fmod.Scalar", "fmod.Tensor", unless=flat)
def _remainder(context: Context, call: Call) -> Any:
    # The teeth of a saw: flat on average, of slope 1 between two of them, and what x - remainder(x) leaves has a slope too.
    context.note(call)
    return straight(call.hard(), 0.5 * call.soft())


@rule("floor_divide.default", "floor_divide.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def _floor_divide(context: Context, call: Call) -> Any:
    if call.kwargs.get("rounding_mode", "floor") is None:
        return context.plain(call)
    real = call.hard()
    if not any(context.carries(each) for each in call.args[:2]):
        return real
    a, b = (context.number(each) for each in call.args[:2])
    if is_float(real):
        context.note(call)
        return straight(real, a / b)
    return context.truth(call, real, a / b)


# How much of the gradient passes a clamp beyond its range.
_LEAK = 0.1


def _rectifies(context: Context, call: Call) -> bool:
    """A ReLU by another name, which hides nothing."""
    low = call.option(1, "min", -1.0 if call.name.startswith("hardtanh") else None)
    high = call.option(2, "max")
    return flat(context, call) or (low == 0 and high is None and not call.name.startswith(("clamp_max", "hardtanh")))


@rule(
    "clamp.default",
    "clamp.Tensor",
    "clamp_min.default",
    "clamp_max.default",
    "hardtanh.default",
    "clamp_min.Tensor",
    "clamp_max.Tensor",
    unless=_rectifies,
)
def _clamp(context: Context, call: Call) -> Any:
    x, result = call.args[0], call.soft()
    beyond = result.detach() != x.detach()
    if call.name.startswith("hardtanh") and call.option(1, "min_val", -1.0) == 0:
        beyond = beyond & (x.detach() > 0)  # ReLU6: below, a ReLU
    if not bool(beyond.any()):
        return result
    context.note(call)
    return straight(result, x * beyond.to(x.dtype) * _LEAK)


def _continuous(context: Context, call: Call) -> bool:
    # threshold(x, 0, 0) is a ReLU, which hides nothing.
    return flat(context, call) or (call.name.startswith("threshold") and call.args[1] == call.args[2])


@rule("threshold.default", "hardshrink.default", unless=_continuous)
def _threshold(context: Context, call: Call) -> Any:
    x = call.args[0]
    if call.name.startswith("threshold"):
        at, jump = x - call.args[1], call.args[1] - call.args[2]
    else:
        at, jump = x.abs() - call.option(1, "lambd", 0.5), x.detach().sign() * call.option(1, "lambd", 0.5)
    context.note(call)
    return straight(call.soft(), torch.sigmoid(at / context.scale(at)) * jump)


@rule("bucketize.Tensor", "searchsorted.Tensor")
def _bucketize(context: Context, call: Call) -> Any:
    x, edges = call.args[:2] if call.name.startswith("bucketize") else call.args[1::-1]
    real = call.hard()
    if not x.requires_grad or edges.shape[-1] < 2:
        return real
    slope = edges.shape[-1] / (edges[..., -1:] - edges[..., :1]).detach().clamp_min(1e-12)
    return context.truth(call, real, x * slope.view(()) if edges.dim() == 1 else x * slope)
