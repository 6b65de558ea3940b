"""Saturated softmax, sigmoid and similar functions, whose gradients vanish, written as one operation or as several."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import finite_gradient, straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.rule import has_no_gradient, rule


def _unknown(context: Context, call: Call) -> bool:
    """For `unless`: the origin of no argument is known."""
    return not context.knows_origins(call)


def unsaturated_temperature(context: Context, x: Tensor, dim: int | None) -> Tensor:
    """The temperature, at least 1, at which the softmax of x over `dim`, or its sigmoid if that is None, is not saturated."""
    sample = context.subsample(x, whole=dim)
    if dim is not None:
        # `subsample` may have split the first dimension.
        sample = sample.nan_to_num(0.0, 0.0, 0.0)
        at = dim % x.dim() + sample.dim() - x.dim()
        return context.scale_from(sample - sample.mean(dim=at, keepdim=True), x).clamp_min(1)
    return context.scale_from(sample / 2, x).clamp_min(1)


@rule("_softmax.default", "_safe_softmax.default", unless=has_no_gradient)
def _softmax(context: Context, call: Call) -> Any:
    x, dim = call.args[0], call.args[1]
    temperature = unsaturated_temperature(context, x, dim)
    if not bool((temperature > 1).any()):
        return call.exact()
    return _softmax_of(context, call, call.hard(), x, dim, temperature)


def _softmax_of(context: Context, call: Call, hard: Tensor, x: Tensor, dim: int, temperature: Tensor | None = None) -> Tensor:
    """Return `hard`, a softmax of x over `dim` in any spelling, with the gradient of one that is not saturated."""
    temperature = unsaturated_temperature(context, x, dim) if temperature is None else temperature
    context.count(call)
    return straight_through(hard.detach(), torch.softmax(finite_gradient(x) / temperature, dim).to(hard.dtype))


@rule("sigmoid.default", unless=has_no_gradient)
def _sigmoid(context: Context, call: Call) -> Any:
    return _with_temperature(context, call, torch.sigmoid)


@rule("tanh.default", unless=has_no_gradient)
def _tanh(context: Context, call: Call) -> Any:
    return _with_temperature(context, call, torch.tanh)


@rule("erf.default", unless=has_no_gradient)
def _erf(context: Context, call: Call) -> Any:
    return _with_temperature(context, call, torch.erf)


@rule("hardsigmoid.default", unless=has_no_gradient)
def _hardsigmoid(context: Context, call: Call) -> Any:
    return _with_temperature(context, call, lambda x: torch.sigmoid(2 * x / 3))


def _with_temperature(context: Context, call: Call, squash: Callable[[Tensor], Tensor]) -> Tensor:
    x = call.args[0]
    temperature = unsaturated_temperature(context, x, None)
    if not bool((temperature > 1).any()):
        exact: Tensor = call.exact()
        return exact
    context.count(call)
    return straight_through(call.hard(), squash(x / temperature))


@rule("exp.default", unless=has_no_gradient)
def _exp(context: Context, call: Call) -> Any:
    x = call.args[0]
    whole = context.origin(x, "log_softmax")
    if whole is not None:
        return _softmax_of(context, call, call.hard(), *whole)
    return context.set_origin(call.exact(), "exp", x)


@rule("_log_softmax.default", unless=has_no_gradient)
def _log_softmax(context: Context, call: Call) -> Any:
    return context.set_origin(call.exact(), "log_softmax", call.args[0], call.args[1])


@rule("logsumexp.default", unless=has_no_gradient)
def _logsumexp(context: Context, call: Call) -> Any:
    result, dims = call.exact(), call.args[1]
    return context.set_origin(result, "logsumexp", call.args[0], dims[0]) if len(dims) == 1 else result


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, or hold the same values, as when something is computed twice."""
    return a is b or (a.shape == b.shape and torch.equal(a.detach(), b.detach()))


@rule("sub.Tensor", unless=_unknown)
def _sub(context: Context, call: Call) -> Any:
    result = context.run(call)
    parts = context.origin(call.args[1], "logsumexp")
    if parts is not None and _same(parts[0], call.args[0]):
        context.set_origin(result, "log_softmax", *parts)
    return result


@rule("sum.dim_IntList", unless=_unknown)
def _sum(context: Context, call: Call) -> Any:
    result = context.run(call)
    parts = context.origin(call.args[0], "exp")
    if parts is not None and call.args[1] is not None and len(call.args[1]) == 1:
        context.set_origin(result, "sum of exp", parts[0], call.args[1][0])
    return result


@rule("add.Tensor", "add.Scalar", "clamp_min.default", unless=_unknown)
def _add(context: Context, call: Call) -> Any:
    result = context.run(call)
    parts = context.origin(call.args[0], "sum of exp")
    if parts is not None and not isinstance(call.args[1], Tensor):
        context.set_origin(result, "sum of exp", *parts)
    for kept in ("square", "size"):
        parts = context.origin(call.args[0], kept)
        if parts is not None and not isinstance(call.args[1], Tensor):
            context.set_origin(result, kept, *parts)
    one = context.origin(call.args[0], "exp")
    if one is not None and not isinstance(call.args[1], Tensor) and call.args[1] == 1:
        context.set_origin(result, "1 + exp", one[0])
    return result


@rule("div.Tensor", unless=_unknown)
def _div(context: Context, call: Call) -> Any:
    a, b = call.args[:2]
    size = context.origin(b, "size")
    if size is not None and _same(size[0], a):
        return _soft_sign(context, call, context.run(call), a)
    over, top, times = context.origin(b, "sum of exp"), context.origin(a, "exp"), context.origin(a, "times exp")
    if over is not None and top is not None and _same(over[0], top[0]):
        return _softmax_of(context, call, call.hard(), *over)
    if over is not None and times is not None and _same(over[0], times[1]):
        mask = _softmax_of(context, call, times[2].detach() / b.detach(), *over)
        return straight_through(call.hard(), times[0] * mask)
    return context.run(call)


def _itself(call: Call) -> bool:
    """Whether a product multiplies a tensor by itself."""
    a, b = call.args[:2]
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape


@rule("mul.Tensor", unless=lambda context, call: _unknown(context, call) and not _itself(call))
def _mul(context: Context, call: Call) -> Any:
    result = context.run(call)
    if _itself(call):
        return context.set_origin(result, "square", call.args[0])
    for factor, other in (call.args[:2], call.args[1::-1]):
        parts = context.origin(other, "inverse size")
        if parts is not None and _same(parts[0], factor):
            return _soft_sign(context, call, result, factor)
        parts = context.origin(other, "exp")
        if parts is not None:
            context.set_origin(result, "times exp", factor, parts[0], other)
    return result


@rule("reciprocal.default", unless=_unknown)
def _reciprocal(context: Context, call: Call) -> Any:
    parts = context.origin(call.args[0], "1 + exp")
    if parts is None:
        return context.run(call)
    context.count(call)
    return straight_through(call.hard(), torch.sigmoid(-parts[0] / unsaturated_temperature(context, parts[0], None)))


@rule("abs.default", unless=has_no_gradient)
def _abs(context: Context, call: Call) -> Any:
    return context.set_origin(call.exact(), "size", call.args[0])


@rule("pow.Tensor_Scalar", unless=has_no_gradient)
def _pow(context: Context, call: Call) -> Any:
    result = call.exact()
    return context.set_origin(result, "square", call.args[0]) if call.args[1] == 2 else result


@rule("sqrt.default", unless=_unknown)
def _sqrt(context: Context, call: Call) -> Any:
    return _root(context, call, "size")


@rule("rsqrt.default", unless=_unknown)
def _rsqrt(context: Context, call: Call) -> Any:
    return _root(context, call, "inverse size")


def _root(context: Context, call: Call, kind: str) -> Tensor:
    result: Tensor = context.run(call)
    parts = context.origin(call.args[0], "square")
    return result if parts is None else context.set_origin(result, kind, *parts)


# From this mean magnitude on, x over its own magnitude is a sign; below, it keeps an informative slope.
_NEARLY_A_SIGN = 0.95


def _soft_sign(context: Context, call: Call, result: Tensor, x: Tensor) -> Tensor:
    """Give x over its own magnitude the gradient of a soft sign, if nearly all of its values are near -1 or 1."""
    if result.detach().abs().mean() < _NEARLY_A_SIGN:
        return result
    context.count(call)
    return straight_through(result.detach(), torch.tanh(x / context.scale(x)).to(result.dtype))
