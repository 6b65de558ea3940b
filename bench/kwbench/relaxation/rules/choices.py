"""Choices among positions: the largest, the k largest, the sorted order, random draws."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.distributions import soft_ranks
from kwbench.relaxation.operation import Call
from kwbench.relaxation.relaxed_tensors import RelaxedTensor
from kwbench.relaxation.rule import rule
from kwbench.relaxation.rules.views import rearranged
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


@rule("max.dim", "min.dim")
def _max(context: Context, call: Call) -> Any:
    if not is_float(call.args[0]):
        return _one_of_many(context, call)
    x, dim, keepdim = call.args[0], call.args[1], call.option(2, "keepdim", False)
    values, indices = call.exact()
    if x.requires_grad:
        sign = 1 if call.name.startswith("max") else -1
        context.attach(indices, RelaxedTensor(later=lambda: _soft_argmax(context, sign * x, dim, keepdim)))
    return values, indices


@rule("kthvalue.default", "median.dim", "mode.default")
def _kth(context: Context, call: Call) -> Any:
    if not is_float(call.args[0]):
        return _one_of_many(context, call)
    values, indices = call.exact()
    if call.args[0].requires_grad:
        # Without an argument only the median has no dimension.
        dim = call.option(2, "dim", -1) if call.name.startswith("kth") else call.option(1, "dim", -1)
        keeps = bool(call.option(3 if call.name.startswith("kth") else 2, "keepdim", False))
        context.attach(indices, RelaxedTensor(later=partial(_rank, context, call, values, dim % call.args[0].dim(), keeps)))
    return values, indices


def _rank(context: Context, call: Call, values: Tensor, dim: int, keeps: bool) -> RelaxedTensor:
    """Return the soft choice of the index of one value of each row."""
    choice = _ranks(context, call.args[0], values if keeps else values.unsqueeze(dim), dim)
    if choice is None:
        context.lose(call)
        return RelaxedTensor()
    context.count(call)
    return RelaxedTensor(choice=choice if keeps else choice.squeeze(dim))


def _ranks(context: Context, x: Tensor, chosen: Tensor, dim: int) -> Tensor | None:
    """Return the soft choice of the indices of some values of x, chosen by their rank along `dim`."""
    return soft_ranks(x, chosen, dim, context.scale(x - x.detach().mean(dim=dim, keepdim=True)))


@rule("median.default", unless=lambda context, call: is_float(call.args[0]))
def _one_of_many(context: Context, call: Call) -> Any:
    """Relax one of many whole numbers, as if any of them may be the one."""
    choice = context.choice(call.args[0])
    if choice is None:
        return context.run(call)
    result = call.hard()
    if isinstance(result, Tensor):
        context.relax_choice(call, result, choice.flatten(0, -2).mean(0))
        return result
    place = 2 if call.name.startswith("kth") else 1
    dim = call.option(place, "dim", -1) % call.args[0].dim()
    mean = choice.mean(dim, keepdim=bool(call.option(place + 1, "keepdim", False)))
    context.relax_choice(call, result[0], mean)
    return result


@rule("topk.default", unless=lambda context, call: not is_float(call.args[0]))
def _topk(context: Context, call: Call) -> Any:
    x, k, dim, largest = call.args[0], call.args[1], call.option(2, "dim", -1), call.option(3, "largest", True)
    values, indices = call.exact()
    if x.requires_grad and k:

        def members() -> RelaxedTensor:
            threshold = values.amin(dim, keepdim=True) if largest else values.amax(dim, keepdim=True)
            gap = x - threshold if largest else threshold - x
            context.count(call)
            return RelaxedTensor(
                members=torch.sigmoid(gap / context.scale(gap)),
                among=x.detach(),
                dim=dim % x.dim(),
                ranks=partial(_ranks, context, x, values, dim % x.dim()),
            )

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
        context.attach(indices, RelaxedTensor(ranks=partial(_ranks, context, x, values, dim % x.dim())))
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
    if result.shape == x.shape:
        return context.attach(result, relaxed)
    return rearranged(context, call, result)


def _part_of_order(context: Context, call: Call, result: Tensor, dim: int) -> Tensor:
    """Give a part of sorted indices a soft mask of the values that it names."""
    x, parts = call.args[0], context.origin(call.args[0], "sorted")
    assert parts is not None
    if result.shape == x.shape:
        context.attach(result, RelaxedTensor(ranks=partial(_ranks, context, parts[0], parts[1], dim)))
        return context.set_origin(result, "sorted", *parts)
    floats, values, _, descending = parts
    part = call.operation(values, *call.args[1:], **call.kwargs)
    selects = call.name.startswith("select")
    if selects:
        part = part.unsqueeze(dim)
    # The part is part from one end of the order; for one from the middle, its edge towards the end is the threshold.
    start = call.option(2, "start", 0) or 0
    first = (start + x.shape[dim] if start < 0 else start) == 0
    gap = floats - part.amin(dim, keepdim=True) if first == descending else part.amax(dim, keepdim=True) - floats
    context.count(call)

    def ranks() -> Tensor | None:
        choice = _ranks(context, floats, part, dim)
        return choice.squeeze(dim) if choice is not None and selects else choice

    return context.attach(
        result, RelaxedTensor(members=torch.sigmoid(gap / context.scale(gap)), among=floats.detach(), dim=dim, ranks=ranks)
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
