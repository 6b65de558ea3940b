"""Saturated squashing: softmax, sigmoid and the like at temperatures where their gradients vanish, however they are written."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import finite_gradient, straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.rule import has_no_gradient, rule


def _unknown(context: Context, call: Call) -> bool:
    """Nothing known of how the arguments came about."""
    return not context.knows_origins(call)


def tempered(context: Context, x: Tensor, dim: int | None) -> Tensor:
    """At least 1: by how much x must shrink for its softmax over `dim`, or its sigmoid, not to be flat."""
    few = context.subsample(x, whole=dim)
    if dim is not None:
        # Sampling may have split the first dimension.
        few = few.nan_to_num(0.0, 0.0, 0.0)
        at = dim % x.dim() + few.dim() - x.dim()
        return context.scale_from(few - few.mean(dim=at, keepdim=True), x).clamp_min(1)
    return context.scale_from(few / 2, x).clamp_min(1)


@rule("_softmax.default", "_safe_softmax.default", unless=has_no_gradient)
def _softmax(context: Context, call: Call) -> Any:
    x, dim = call.args[0], call.args[1]
    heat = tempered(context, x, dim)
    if not bool((heat > 1).any()):
        return call.exact()
    return _softmax_of(context, call, call.hard(), x, dim, heat)


def _softmax_of(context: Context, call: Call, hard: Tensor, x: Tensor, dim: int, heat: Tensor | None = None) -> Tensor:
    """A softmax of x over `dim`, however it was written: the value `hard`, the gradient of one that is not saturated."""
    heat = tempered(context, x, dim) if heat is None else heat
    context.count(call)
    return straight_through(hard.detach(), torch.softmax(finite_gradient(x) / heat, dim).to(hard.dtype))


@rule("sigmoid.default", unless=has_no_gradient)
def _sigmoid(context: Context, call: Call) -> Any:
    return _squashed(context, call, torch.sigmoid)


@rule("tanh.default", unless=has_no_gradient)
def _tanh(context: Context, call: Call) -> Any:
    return _squashed(context, call, torch.tanh)


@rule("erf.default", unless=has_no_gradient)
def _erf(context: Context, call: Call) -> Any:
    return _squashed(context, call, torch.erf)


@rule("hardsigmoid.default", unless=has_no_gradient)
def _hardsigmoid(context: Context, call: Call) -> Any:
    return _squashed(context, call, lambda x: torch.sigmoid(2 * x / 3))


def _squashed(context: Context, call: Call, squash: Callable[[Tensor], Tensor]) -> Tensor:
    x = call.args[0]
    heat = tempered(context, x, None)
    if not bool((heat > 1).any()):
        exact: Tensor = call.exact()
        return exact
    context.count(call)
    return straight_through(call.hard(), squash(x / heat))


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
    """The same tensor, or one computed twice."""
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
        return _sign_of(context, call, context.run(call), a)
    over, top, times = context.origin(b, "sum of exp"), context.origin(a, "exp"), context.origin(a, "times exp")
    if over is not None and top is not None and _same(over[0], top[0]):
        return _softmax_of(context, call, call.hard(), *over)
    if over is not None and times is not None and _same(over[0], times[1]):
        mask = _softmax_of(context, call, times[2].detach() / b.detach(), *over)
        return straight_through(call.hard(), times[0] * mask)
    return context.run(call)


def _itself(call: Call) -> bool:
    """Whether something is multiplied by itself."""
    a, b = call.args[:2]
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape


@rule("mul.Tensor", unless=lambda context, call: _unknown(context, call) and not _itself(call))
def _mul(context: Context, call: Call) -> Any:
    result = context.run(call)
    if _itself(call):
        return context.set_origin(result, "square", call.args[0])
    for other, each in (call.args[:2], call.args[1::-1]):
        parts = context.origin(each, "inverse size")
        if parts is not None and _same(parts[0], other):
            return _sign_of(context, call, result, other)
        parts = context.origin(each, "exp")
        if parts is not None:
            context.set_origin(result, "times exp", other, parts[0], each)
    return result


@rule("reciprocal.default", unless=_unknown)
def _reciprocal(context: Context, call: Call) -> Any:
    parts = context.origin(call.args[0], "1 + exp")
    if parts is None:
        return context.run(call)
    context.count(call)
    return straight_through(call.hard(), torch.sigmoid(-parts[0] / tempered(context, parts[0], None)))


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


def _root(context: Context, call: Call, what: str) -> Tensor:
    result: Tensor = context.run(call)
    parts = context.origin(call.args[0], "square")
    return result if parts is None else context.set_origin(result, what, *parts)


# A mean size from which x over its own size is a sign, not a squashing that keeps its slope.
_SIGN = 0.95


def _sign_of(context: Context, call: Call, result: Tensor, x: Tensor) -> Tensor:
    """x over its size, however it was written: a sign, where hardly anything is left between."""
    if result.detach().abs().mean() < _SIGN:
        return result
    context.count(call)
    return straight_through(result.detach(), torch.tanh(x / context.scale(x)).to(result.dtype))
