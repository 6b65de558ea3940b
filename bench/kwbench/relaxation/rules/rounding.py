"""Step functions: sign, rounding, clamping, thresholds, integers from floats."""

from typing import Any

import torch

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.rule import has_no_gradient, rule
from kwbench.relaxation.tensors import is_float


@rule("sign.default", "sgn.default", unless=has_no_gradient)
def _sign(context: Context, call: Call) -> Any:
    x = call.args[0]
    context.count(call)
    return straight_through(call.hard(), torch.tanh(x / context.scale(x)))


@rule("heaviside.default", unless=has_no_gradient)
def _heaviside(context: Context, call: Call) -> Any:
    x = call.args[0]
    context.count(call)
    return straight_through(call.hard(), torch.sigmoid(x / context.scale(x)))


@rule(
    "round.default", "round.decimals", "floor.default", "ceil.default", "trunc.default", "fix.default", unless=has_no_gradient
)
def _round(context: Context, call: Call) -> Any:
    context.count(call)
    return straight_through(call.hard(), call.args[0])


@rule("frac.default", "remainder.Scalar", "remainder.Tensor", "fmod.Scalar", "fmod.Tensor", unless=has_no_gradient)
def _remainder(context: Context, call: Call) -> Any:
    # A sawtooth has slope 1 between jumps and is flat on average. Half of that also leaves x - remainder(x) a slope.
    context.count(call)
    return straight_through(call.hard(), 0.5 * call.exact())


@rule("floor_divide.default", "floor_divide.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def _floor_divide(context: Context, call: Call) -> Any:
    if call.kwargs.get("rounding_mode", "floor") is None:
        return context.run(call)
    hard = call.hard()
    if not any(context.has_gradient(argument) for argument in call.args[:2]):
        return hard
    if (pushed := context.push(call)) is not None:
        return pushed
    a, b = (context.as_float(argument) for argument in call.args[:2])
    if is_float(hard):
        context.count(call)
        return straight_through(hard, a / b)
    return context.relax(call, hard, a / b)


# The share of the gradient that passes a clamp outside its range.
_LEAK = 0.1


def _rectifies(context: Context, call: Call) -> bool:
    """Whether a clamp is a ReLU, whose own gradient is informative."""
    low = call.option(1, "min", -1.0 if call.name.startswith("hardtanh") else None)
    high = call.option(2, "max")
    return has_no_gradient(context, call) or (low == 0 and high is None and not call.name.startswith(("clamp_max", "hardtanh")))


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
    x, result = call.args[0], call.exact()
    outside = result.detach() != x.detach()
    if call.name.startswith("hardtanh") and call.option(1, "min_val", -1.0) == 0:
        outside = outside & (x.detach() > 0)  # ReLU6 is a ReLU below its limit
    if not bool(outside.any()):
        return result
    context.count(call)
    return straight_through(result, x * outside.to(x.dtype) * _LEAK)


def _continuous(context: Context, call: Call) -> bool:
    # threshold(x, 0, 0) is a ReLU, whose own gradient is informative.
    return has_no_gradient(context, call) or (call.name.startswith("threshold") and call.args[1] == call.args[2])


@rule("threshold.default", "hardshrink.default", unless=_continuous)
def _threshold(context: Context, call: Call) -> Any:
    x = call.args[0]
    if call.name.startswith("threshold"):
        distance, jump = x - call.args[1], call.args[1] - call.args[2]
    else:
        distance, jump = x.abs() - call.option(1, "lambd", 0.5), x.detach().sign() * call.option(1, "lambd", 0.5)
    context.count(call)
    return straight_through(call.exact(), torch.sigmoid(distance / context.scale(distance)) * jump)


@rule("bucketize.Tensor", "searchsorted.Tensor")
def _bucketize(context: Context, call: Call) -> Any:
    x, edges = call.args[:2] if call.name.startswith("bucketize") else call.args[1::-1]
    hard = call.hard()
    if not x.requires_grad or edges.shape[-1] < 2:
        return hard
    slope = edges.shape[-1] / (edges[..., -1:] - edges[..., :1]).detach().clamp_min(1e-12)
    return context.relax(call, hard, x * slope.view(()) if edges.dim() == 1 else x * slope)
