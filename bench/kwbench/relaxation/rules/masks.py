"""What is made of truth values and whole numbers: choices by a mask, places written by a mask, other types."""

from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight
from kwbench.relaxation.context import Call, Context, Soft, is_float, rule


@rule("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(context: Context, call: Call) -> Any:
    condition, a, b = call.args
    twin = context.twin(condition)
    whole = any(context.twin(each) is not None for each in (a, b))
    a, b = (context.number(each) if context.twin(each) is not None else each for each in (a, b))
    if whole:
        real = call.hard()
        soft = torch.where(condition, a, b)
        return straight(real, soft) if is_float(real) else context.truth(call, real, soft)
    result = torch.where(condition, a, b)
    if twin is None or twin.value is None:
        return result
    if not is_float(result):
        return context.truth(call, result, twin.value * _difference(a, b, twin.value))
    return _mixed(context, call, result, twin.value, a, b)


def _difference(a: Any, b: Any, like: Tensor) -> Tensor:
    """a - b without gradient, 0 where it is not finite."""
    gap = (torch.as_tensor(a, device=like.device) - torch.as_tensor(b, device=like.device)).detach()
    return gap.nan_to_num(0.0, 0.0, 0.0)


def _mixed(context: Context, call: Call, result: Tensor, share: Tensor, a: Any, b: Any) -> Tensor:
    """A choice between a and b, with the gradient of how much of each is taken."""
    context.note(call)
    return straight(result, (share * _difference(a, b, result)).to(result.dtype))


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(context: Context, call: Call) -> Any:
    x, mask, value = call.args
    twin = context.twin(mask)
    if not is_float(x):
        real = call.hard()
        soft = context.number(x).masked_fill(mask, float(value))
        if twin is not None and twin.value is not None:
            soft = soft + twin.value * _difference(float(value), soft, soft)
        return context.truth(call, real, soft)
    result = x.masked_fill(mask, value)
    if twin is None or twin.value is None:
        return result
    return _mixed(context, call, result, twin.value, value, x)


@rule("index_put.default", "_index_put_impl.default")
def _index_put(context: Context, call: Call) -> Any:
    x, indices, values = call.args[:3]
    adds = bool(call.option(3, "accumulate", False))
    twins = [context.twin(index) for index in indices]
    if is_float(x):
        result = call.operation(x, indices, context.number(values).to(x.dtype), *call.args[3:])
        real, start = result, x
    else:
        real, start = call.hard(), context.number(x)
        result = torch.index_put(start, indices, context.number(values), adds)
    where = [place for place, twin in enumerate(twins) if twin is not None]
    if where:
        twin = twins[where[0]]
        assert twin is not None
        soft = None
        if len(where) == 1 and twin.choice is not None:
            soft = _put_by_choice(start, list(indices), where[0], twin.choice, values, adds)
        elif twin.value is not None and indices[where[0]].dtype == torch.bool and len(indices) == 1:
            soft = _put_by_mask(start, indices[0], twin.value, values)
        if soft is None:
            context.lose(call)
        else:
            result = result + soft
            if is_float(x):
                context.note(call)
    if is_float(x):
        return straight(real.detach(), result) if result is not real else real
    return context.truth(call, real, result)


def _put_by_mask(x: Tensor, mask: Tensor, share: Tensor, values: Tensor) -> Tensor | None:
    """The gradient of how much a mask takes part."""
    share = share.view(*share.shape, *[1] * (x.dim() - mask.dim()))
    if values.numel() == 1:
        return share * _difference(values.reshape(()).to(x.dtype), x, x)
    # One value for each place of the mask: what the others would get is not known.
    put = torch.index_put(x.detach(), (mask,), values.detach().to(x.dtype))
    return share * _difference(put, x, x)


def _put_by_choice(x: Tensor, indices: list[Any], place: int, choice: Tensor, values: Tensor, adds: bool) -> Tensor | None:
    """The gradient of where a value is put, if the place was drawn or chosen among k."""
    k = choice.shape[-1]
    if any(index is None for index in indices) or values.numel() != 1:
        return None
    everywhere = [index.unsqueeze(-1) for index in indices]
    everywhere[place] = torch.arange(k, device=x.device)
    if len(indices) != x.dim() or x.shape[place] != k:
        return None
    share = torch.index_put(torch.zeros_like(x), tuple(everywhere), choice.to(x.dtype), accumulate=True)
    value = values.detach().reshape(()).to(x.dtype)
    return share * (value if adds else _difference(value, x, x))


@rule("masked_scatter.default", "masked_select.default")
def _masked(context: Context, call: Call) -> Any:
    if context.twin(call.args[1]) is not None:
        context.lose(call)
    return call.soft()


@rule("_to_copy.default")
def _to_copy(context: Context, call: Call) -> Any:
    x, twin = call.args[0], context.twin(call.args[0])
    dtype = call.kwargs.get("dtype") or x.dtype
    if dtype.is_floating_point or dtype.is_complex:
        if twin is None or twin.value is None:
            return call.soft()
        return straight(call.hard(), twin.value.to(dtype))
    real = call.hard()
    value = x if is_float(x) else None if twin is None else twin.value
    if dtype == torch.bool and x.dtype != torch.bool and value is not None:
        return context.truth(call, real, torch.tanh(value.abs() / context.scale(value)))
    if twin is not None:
        return context.attach(real, twin)
    return context.truth(call, real, x) if is_float(x) else real


@rule("copy.default", unless=lambda context, call: is_float(call.args[0]) and is_float(call.args[1]))
def _copy(context: Context, call: Call) -> Any:
    target, source = call.args[:2]
    twin = context.twin(source)
    if is_float(target):
        return context.number(source).to(target.dtype).expand(target.shape)
    real = source.detach().to(target.dtype).expand(target.shape).clone()
    if twin is not None and source.shape == target.shape:
        return context.attach(real, twin)
    if twin is not None and twin.value is not None:
        return context.truth(call, real, twin.value.expand(target.shape))
    if source.requires_grad:
        return context.truth(call, real, source.expand(target.shape))
    return real


@rule("view.dtype")
def _view_type(context: Context, call: Call) -> Any:
    x = call.args[0]
    result = call.operation(x.detach(), call.args[1])
    twin = context.twin(x)
    # Truth values as the bytes that they are, and back.
    if twin is not None and twin.value is not None and {x.dtype, result.dtype} <= {torch.bool, torch.uint8, torch.int8}:
        return context.attach(result, Soft(twin.value))
    context.lose(call)
    return result
