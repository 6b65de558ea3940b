"""Choices among positions: the largest, the k largest, the sorted order, random draws."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.relaxed_tensors import RelaxedTensor
from kwbench.relaxation.rule import rule
from kwbench.relaxation.tensors import is_float


def _soft_argmax(context: Context, x: Tensor, dim: int, keepdim: bool) -> RelaxedTensor:
    """Return a softmax over `dim`, as the soft choice of the largest."""
    centred = x - x.detach().mean(dim=dim, keepdim=True)
    choice = torch.softmax(centred / context.scale(centred), dim).movedim(dim, -1)
    return RelaxedTensor(choice=choice.unsqueeze(dim if dim >= 0 else dim - 1) if keepdim else choice)


@rule("argmax.default", "argmin.default")
def _argmax(context: Context, call: Call) -> Any:
    hard = call.hard()
    if not context.has_gradient(call.args[0]):
        return hard
    x, dim, keepdim = context.as_float(call.args[0]), call.option(1, "dim"), call.option(2, "keepdim", False)
    x = x if "max" in call.name else -x
    context.count(call)
    if dim is None:
        return context.attach(hard, _soft_argmax(context, x.flatten(), 0, False))
    return context.attach(hard, _soft_argmax(context, x, dim, keepdim))


@rule("max.dim", "min.dim", unless=lambda context, call: not is_float(call.args[0]))
def _max(context: Context, call: Call) -> Any:
    x, dim, keepdim = call.args[0], call.args[1], call.option(2, "keepdim", False)
    values, indices = call.exact()
    if x.requires_grad:
        sign = 1 if call.name.startswith("max") else -1
        context.attach(indices, RelaxedTensor(later=lambda: _soft_argmax(context, sign * x, dim, keepdim)))
    return values, indices


@rule("kthvalue.default", "median.dim", "mode.default", unless=lambda context, call: not is_float(call.args[0]))
def _kth(context: Context, call: Call) -> Any:
    values, indices = call.exact()
    if call.args[0].requires_grad:
        context.attach(indices, RelaxedTensor(later=partial(_lost_index, context, call)))
    return values, indices


def _lost_index(context: Context, call: Call) -> RelaxedTensor:
    """Lose the gradient when the index of the k-th value is used."""
    context.lose(call)
    return RelaxedTensor()


@rule("topk.default", unless=lambda context, call: not is_float(call.args[0]))
def _topk(context: Context, call: Call) -> Any:
    x, k, dim, largest = call.args[0], call.args[1], call.option(2, "dim", -1), call.option(3, "largest", True)
    values, indices = call.exact()
    if x.requires_grad and k:

        def members() -> RelaxedTensor:
            threshold = values.amin(dim, keepdim=True) if largest else values.amax(dim, keepdim=True)
            gap = x - threshold if largest else threshold - x
            context.count(call)
            return RelaxedTensor(members=torch.sigmoid(gap / context.scale(gap)), among=x.detach(), dim=dim % x.dim())

        context.attach(indices, RelaxedTensor(later=members))
    return values, indices


@rule("sort.default", "sort.stable")
def _sort(context: Context, call: Call) -> Any:
    x = call.args[0]
    stable = call.name.startswith("sort.stable")
    dim = call.kwargs.get("dim", -1) if stable else call.option(1, "dim", -1)
    descending = bool(call.kwargs.get("descending", False) if stable else call.option(2, "descending", False))
    order = context.origin(x, "sorted")
    if order is not None and not descending and order[2] == dim % x.dim():
        # Sorting the indices of a sort gives the rank of each value.
        values, indices = call.operation(*call.args, **call.kwargs)
        context.count(call)
        floats, sign = order[0], -1 if order[3] else 1
        rank = sign * floats * (floats.shape[dim] / (4 * context.scale(floats - floats.mean(dim, keepdim=True))))
        return values, context.relax(call, indices, rank)
    if not is_float(x):
        return context.run(call)
    values, indices = call.exact()
    if x.requires_grad:
        # A mask made from some of these indices needs to know which values they name.
        context.set_origin(indices, "sorted", x, values, dim % x.dim(), descending)
        context.attach(indices, RelaxedTensor())
    return values, indices


@rule("slice.Tensor", "narrow.default", "select.int")
def _slice(context: Context, call: Call) -> Any:
    x, parts = call.args[0], context.origin(call.args[0], "sorted")
    relaxed = context.find(x)
    if relaxed is None or (parts is None and relaxed.members is None and relaxed.choice is None):
        return context.run(call)
    result = call.exact()
    dim = (call.args[1] if len(call.args) > 1 else 0) % x.dim()
    if parts is not None and dim == parts[2] and result.numel():
        return _part_of_order(context, call, result, dim)
    if parts is None and relaxed.choice is not None:
        return context.attach(result, RelaxedTensor(choice=call.operation(relaxed.choice, dim, *call.args[2:], **call.kwargs)))
    if result.shape == x.shape:
        return context.attach(result, relaxed)
    context.lose(call)
    return result


def _part_of_order(context: Context, call: Call, result: Tensor, dim: int) -> Tensor:
    """Give a part of sorted indices a soft mask of the values that it names."""
    x, parts = call.args[0], context.origin(call.args[0], "sorted")
    assert parts is not None
    if result.shape == x.shape:
        context.attach(result, RelaxedTensor())
        return context.set_origin(result, "sorted", *parts)
    floats, values, _, descending = parts
    part = call.operation(values, *call.args[1:], **call.kwargs)
    if call.name.startswith("select"):
        part = part.unsqueeze(dim)
    # The part is part from one end of the order; for one from the middle, its edge towards the end is the threshold.
    start = call.option(2, "start", 0) or 0
    first = (start + x.shape[dim] if start < 0 else start) == 0
    gap = floats - part.amin(dim, keepdim=True) if first == descending else part.amax(dim, keepdim=True) - floats
    context.count(call)
    return context.attach(
        result, RelaxedTensor(members=torch.sigmoid(gap / context.scale(gap)), among=floats.detach(), dim=dim)
    )


@rule("multinomial.default")
def _multinomial(context: Context, call: Call) -> Any:
    p, hard = call.args[0], call.hard()
    if not p.requires_grad:
        return hard
    context.count(call)
    choice = (p / p.sum(dim=-1, keepdim=True)).unsqueeze(-2).expand(*hard.shape, p.shape[-1])
    return context.attach(hard, RelaxedTensor(choice=choice))


@rule("bernoulli.default", "bernoulli.p", "bernoulli.Tensor")
def _bernoulli(context: Context, call: Call) -> Any:
    p = call.args[1] if len(call.args) > 1 and isinstance(call.args[1], Tensor) else call.args[0]
    hard = call.hard()
    if not p.requires_grad:
        return hard
    if is_float(hard):
        context.count(call)
        return straight_through(hard, p)
    return context.relax(call, hard, p)


@rule("normal.Tensor_float", "normal.Tensor_Tensor")
def _normal(context: Context, call: Call) -> Any:
    mean, spread = call.args[:2]
    hard = call.hard()
    if isinstance(spread, Tensor) and spread.requires_grad:
        noise = ((hard - mean) / spread).detach()
        return straight_through(hard, mean + spread * torch.where(noise.isfinite(), noise, 0))
    return straight_through(hard, mean)


@rule("normal.float_Tensor")
def _normal_spread(context: Context, call: Call) -> Any:
    mean, spread = call.args[:2]
    hard = call.hard()
    noise = ((hard - mean) / spread).detach()
    return straight_through(hard, spread * torch.where(noise.isfinite(), noise, 0))


@rule("poisson.default")
def _poisson(context: Context, call: Call) -> Any:
    context.count(call)
    return straight_through(call.hard(), call.args[0])
