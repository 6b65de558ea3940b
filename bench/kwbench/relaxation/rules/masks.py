"""Uses of booleans and integers: selection by a mask, writing by a mask or an index, conversion to other types."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.distributions import LARGEST, certain, resized
from kwbench.relaxation.operation import Call
from kwbench.relaxation.relaxed_tensors import RelaxedTensor
from kwbench.relaxation.rule import rule
from kwbench.relaxation.tensors import is_float


@rule("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(context: Context, call: Call) -> Any:
    condition, a, b = call.args
    relaxed = context.find(condition)
    choices = [context.choice(branch) for branch in (a, b)]
    if any(choice is not None for choice in choices):
        mixed = _mixed_choice(context, call, choices, None if relaxed is None else relaxed.value)
        if mixed is not None:
            return mixed
    relaxes_values = any(context.find(branch) is not None for branch in (a, b))
    a, b = (context.as_float(branch) if context.find(branch) is not None else branch for branch in (a, b))
    if relaxes_values:
        hard = call.hard()
        soft = torch.where(condition, a, b)
        return straight_through(hard, soft) if is_float(hard) else context.relax(call, hard, soft)
    result = torch.where(condition, a, b)
    if relaxed is None or relaxed.value is None:
        return result
    if not is_float(result):
        return context.relax(call, result, relaxed.value * _difference(a, b, relaxed.value))
    return _mixed(context, call, result, relaxed.value, a, b)


def _mixed_choice(context: Context, call: Call, choices: list[Tensor | None], share: Tensor | None) -> Tensor | None:
    """Return a selection between whole numbers with soft distributions; None if it cannot have one."""
    hard = call.hard()
    branches = [torch.as_tensor(branch, device=hard.device).expand(hard.shape) for branch in call.args[1:3]]
    if is_float(hard) or any(
        choice is None and int(branch.min()) < 0 for branch, choice in zip(branches, choices, strict=True)
    ):
        return None
    k = max(
        int(branch.max()) + 1 if choice is None else choice.shape[-1] for branch, choice in zip(branches, choices, strict=True)
    )
    if hard.numel() * k > LARGEST:
        return None
    a, b = (
        certain(branch, k) if choice is None else resized(choice, k).expand(*hard.shape, k)
        for branch, choice in zip(branches, choices, strict=True)
    )
    condition = call.args[0].expand(hard.shape)
    choice = torch.where(condition.unsqueeze(-1), a, b)
    if share is not None:
        choice = choice + (share - share.detach()).expand(hard.shape).unsqueeze(-1) * (a - b).detach()
    return context.relax_choice(call, hard, choice)


def _difference(a: Any, b: Any, like: Tensor) -> Tensor:
    """Return a - b without a gradient, 0 where it is not finite."""
    gap = (torch.as_tensor(a, device=like.device) - torch.as_tensor(b, device=like.device)).detach()
    return gap.nan_to_num(0.0, 0.0, 0.0)


def _mixed(context: Context, call: Call, result: Tensor, share: Tensor, a: Any, b: Any) -> Tensor:
    """Return a selection between a and b, with the gradient of how much of each is taken."""
    context.count(call)
    return straight_through(result, (share * _difference(a, b, result)).to(result.dtype))


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(context: Context, call: Call) -> Any:
    x, mask, value = call.args
    relaxed = context.find(mask)
    if context.choice(x) is not None:
        filling = torch.as_tensor(value, device=x.device).to(x.dtype)
        return _where(context, replace(call, operation=torch.where, args=(mask, filling, x), kwargs={}))
    if not is_float(x):
        hard = call.hard()
        soft = context.as_float(x).masked_fill(mask, float(value))
        if relaxed is not None and relaxed.value is not None:
            soft = soft + relaxed.value * _difference(float(value), soft, soft)
        return context.relax(call, hard, soft)
    result = x.masked_fill(mask, value)
    if relaxed is None or relaxed.value is None:
        return result
    return _mixed(context, call, result, relaxed.value, value, x)


@rule("index_put.default", "_index_put_impl.default")
def _index_put(context: Context, call: Call) -> Any:
    x, indices, values = call.args[:3]
    adds = bool(call.option(3, "accumulate", False))
    relaxations = [context.find(index) for index in indices]
    if is_float(x):
        result = call.operation(x, indices, context.as_float(values).to(x.dtype), *call.args[3:])
        hard, start = result, x
    else:
        if len(indices) == 1 and indices[0].dtype == torch.bool and indices[0].shape == x.shape and values.numel() == 1:
            selection = replace(call, operation=torch.where, args=(indices[0], values.reshape(()).to(x.dtype), x), kwargs={})
            if not adds and any(context.choice(branch) is not None for branch in selection.args[1:]):
                return _where(context, selection)
        if not any(relaxations) and (choice := context.choice(values)) is not None and not adds:
            return _put_choice(context, call, choice)
        hard, start = call.hard(), context.as_float(x)
        result = torch.index_put(start, indices, context.as_float(values), adds)
    positions = [position for position, relaxed in enumerate(relaxations) if relaxed is not None]
    if positions:
        relaxed = relaxations[positions[0]]
        assert relaxed is not None
        soft = None
        choice = relaxed.distribution() if len(positions) == 1 else None
        if choice is not None:
            soft = _put_by_choice(start, list(indices), positions[0], choice, values, adds)
        elif relaxed.value is not None and indices[positions[0]].dtype == torch.bool and len(indices) == 1:
            soft = _put_by_mask(start, indices[0], relaxed.value, values)
        if soft is None:
            context.lose(call)
        else:
            result = result + soft
            if is_float(x):
                context.count(call)
    if is_float(x):
        return straight_through(hard.detach(), result) if result is not hard else hard
    return context.relax(call, hard, result)


def _put_choice(context: Context, call: Call, choice: Tensor) -> Tensor:
    """Write whole numbers that have a soft distribution into others, at indices that are known."""
    x, indices = call.args[:2]
    hard: Tensor = call.hard()
    before = context.choice(x)
    k = max(choice.shape[-1], before.shape[-1] if before is not None else int(x.max()) + 1)
    if hard.numel() * k > LARGEST or (before is None and int(x.min()) < 0):
        context.lose(call)
        return hard
    start = certain(x, k) if before is None else resized(before, k)
    return context.relax_choice(call, hard, torch.index_put(start, indices, resized(choice, k).to(start.dtype)))


def _put_by_mask(x: Tensor, mask: Tensor, share: Tensor, values: Tensor) -> Tensor | None:
    """Return a term with the gradient of the mask by which values are written."""
    share = share.view(*share.shape, *[1] * (x.dim() - mask.dim()))
    if values.numel() == 1:
        return share * _difference(values.reshape(()).to(x.dtype), x, x)
    # One value for each true position. What the other positions would get is not known.
    put = torch.index_put(x.detach(), (mask,), values.detach().to(x.dtype))
    return share * _difference(put, x, x)


def _put_by_choice(x: Tensor, indices: list[Any], position: int, choice: Tensor, values: Tensor, adds: bool) -> Tensor | None:
    """Return a term with the gradient of the position, drawn or chosen among k, at which a value is written."""
    if any(index is None for index in indices) or values.numel() != 1 or len(indices) != x.dim():
        return None
    k = x.shape[position]
    choice = resized(choice, k)
    every_index = [index.unsqueeze(-1) for index in indices]
    every_index[position] = torch.arange(k, device=x.device)
    share = torch.index_put(torch.zeros_like(x), tuple(every_index), choice.to(x.dtype), accumulate=True)
    value = values.detach().reshape(()).to(x.dtype)
    return share * (value if adds else _difference(value, x, x))


@rule("masked_scatter.default", "masked_select.default")
def _masked(context: Context, call: Call) -> Any:
    if context.find(call.args[1]) is not None:
        context.lose(call)
    return call.exact()


@rule("_to_copy.default")
def _to_copy(context: Context, call: Call) -> Any:
    x, relaxed = call.args[0], context.find(call.args[0])
    dtype = call.kwargs.get("dtype") or x.dtype
    if dtype.is_floating_point or dtype.is_complex:
        if relaxed is None or (relaxed.value is None and relaxed.distribution() is None):
            return call.exact()
        return straight_through(call.hard(), context.as_float(x).to(dtype))
    hard = call.hard()
    value = x if is_float(x) else None if relaxed is None else relaxed.value
    if dtype == torch.bool and x.dtype != torch.bool and value is not None:
        return context.relax(call, hard, torch.tanh(value.abs() / context.scale(value)))
    if relaxed is not None:
        return context.attach(hard, relaxed)
    return context.relax(call, hard, x) if is_float(x) else hard


@rule("copy.default", unless=lambda context, call: is_float(call.args[0]) and is_float(call.args[1]))
def _copy(context: Context, call: Call) -> Any:
    target, source = call.args[:2]
    relaxed = context.find(source)
    if is_float(target):
        return context.as_float(source).to(target.dtype).expand(target.shape)
    hard = source.detach().to(target.dtype).expand(target.shape).clone()
    if relaxed is not None and source.shape == target.shape:
        return context.attach(hard, relaxed)
    if relaxed is not None and relaxed.value is not None:
        return context.relax(call, hard, relaxed.value.expand(target.shape))
    if relaxed is not None and (choice := relaxed.distribution()) is not None:
        return context.relax_choice(call, hard, choice.expand(*target.shape, -1))
    if source.requires_grad:
        return context.relax(call, hard, source.expand(target.shape))
    return hard


@rule("view.dtype")
def _view_type(context: Context, call: Call) -> Any:
    x = call.args[0]
    result = call.operation(x.detach(), call.args[1])
    relaxed = context.find(x)
    # Booleans viewed as bytes, and back.
    if relaxed is not None and relaxed.value is not None and {x.dtype, result.dtype} <= {torch.bool, torch.uint8, torch.int8}:
        return context.attach(result, RelaxedTensor(relaxed.value))
    context.lose(call)
    return result
