"""Relaxation rules for indexing operations: scatter, gather and table lookups.

If an index depends on the pixels, it has a relaxed version: a soft choice of positions, or a soft mask over them (see
`RelaxedTensor`). The rules compute the result's gradient with respect to that choice or mask.
"""

from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.relaxed_tensors import RelaxedTensor
from kwbench.relaxation.rule import rule
from kwbench.relaxation.tensors import is_float


@rule("scatter.value", "scatter.src")
def _scatter(context: Context, call: Call) -> Any:
    x, dim, index, source = call.args
    dim = dim % x.dim() if x.dim() else 0
    relaxed = context.find(index)
    if is_float(x):
        source = context.as_float(source)
        source = source.to(x.dtype) if isinstance(source, Tensor) else source
        hard = result = call.operation(x, dim, index, source)
    else:
        hard = call.hard()
        source = context.as_float(source)
        result = context.as_float(x).scatter(dim, index, float(source) if not isinstance(source, Tensor) else source)
    mask = None if relaxed is None else _soft_mask(relaxed, dim, result)
    if relaxed is not None and mask is None:
        context.lose(call)
    if mask is not None:
        written = source if not isinstance(source, Tensor) else _values_if_named(relaxed, result, index, source.detach(), dim)
        result = result + mask * written
    if is_float(x):
        if mask is not None:
            context.count(call)
        return straight_through(hard.detach(), result) if result is not hard else hard
    return context.relax(call, hard, result)


def _values_if_named(relaxed: RelaxedTensor | None, result: Tensor, index: Tensor, source: Tensor, dim: int) -> Tensor:
    """Return the value that each position of the result would hold if the index named it."""
    current = result.detach()
    if source.shape[dim] == 1:
        return source
    among = None if relaxed is None else relaxed.among
    if among is not None and among.shape == current.shape and torch.equal(among.gather(dim, index), current.gather(dim, index)):
        # The scattered values are those that were ranked: each position would hold its own.
        return among
    # A position that is still zero would hold the smallest of the scattered values.
    return torch.where(current != 0, current, source.amin(dim, keepdim=True))


def _soft_mask(relaxed: RelaxedTensor, dim: int, result: Tensor) -> Tensor | None:
    """Return how strongly the index names each position of `dim`, in the shape of the result; None if that is unknown."""
    if relaxed.members is not None:
        return relaxed.members if relaxed.members.shape == result.shape and relaxed.dim == dim else None
    if relaxed.choice is None:
        return None
    mask = relaxed.choice.sum(dim).movedim(-1, dim)
    return mask if mask.shape == result.shape else None


@rule("scatter_add.default")
def _scatter_add(context: Context, call: Call) -> Any:
    x, dim, index, source = call.args
    relaxed = context.find(index)
    result = context.run(Call(call.operation, (x, dim, index.detach(), source), call.kwargs, call.where))
    if relaxed is None:
        return result
    if relaxed.choice is None or relaxed.choice.shape[-1] != x.shape[dim] or not is_float(result):
        context.lose(call)
        return result
    context.count(call)
    dim %= x.dim()
    added = source.detach()[tuple(slice(size) for size in index.shape)].unsqueeze(-1)
    soft = (relaxed.choice * added).sum(dim).movedim(-1, dim)
    return straight_through(result, soft) if soft.shape == result.shape else result


@rule("gather.default")
def _gather(context: Context, call: Call) -> Any:
    x, dim, index = call.args[:3]
    relaxed, table = context.find(index), context.as_float(x)
    soft = table.gather(dim, index)
    hard = soft if is_float(x) else call.hard()
    if relaxed is not None:
        dim %= x.dim()
        mask = None
        if relaxed.choice is not None and index.shape[dim] == 1:
            mask = relaxed.choice.movedim(-1, dim).squeeze(dim + 1)
        if mask is None or mask.shape != x.shape:
            if context.origin(index, "sorted") is None:
                context.lose(call)
        else:
            context.count(call)
            soft = soft + (mask * table.detach()).sum(dim, keepdim=True)
    if is_float(x):
        return straight_through(hard.detach(), soft) if soft is not hard else hard
    return context.relax(call, hard, soft)


@rule("embedding.default", "index.Tensor", "index_select.default")
def _lookup(context: Context, call: Call) -> Any:
    table, index = call.args[0], call.args[2] if call.name.startswith("index_select") else call.args[1]
    indices = list(index) if isinstance(index, list | tuple) else [index]
    relaxed_at = [position for position, index in enumerate(indices) if context.find(index) is not None]
    if not relaxed_at:
        return context.run(call)
    hard, relaxed = call.hard(), context.find(indices[relaxed_at[0]])
    assert relaxed is not None
    table_values = context.as_float(table)
    soft = call.operation(table_values, *call.args[1:], **call.kwargs)
    axis = call.args[1] % table.dim() if call.name.startswith("index_select") else 0
    if (
        len(relaxed_at) == 1
        and relaxed.choice is not None
        and relaxed.choice.shape[-1] == table_values.shape[axis or relaxed_at[0]]
    ):
        context.count(call)
        soft = soft + _mean_entry(table_values.detach(), indices, relaxed_at[0], relaxed.choice, axis)
    elif len(indices) == 1 and not axis and relaxed.value is not None and indices[0].dtype != torch.bool and len(table) > 1:
        # The index is a rounded number: use the slope of the table at the entry as the gradient.
        slope = torch.gradient(table_values.detach(), dim=0)[0][indices[0]]
        context.count(call)
        soft = soft + slope * relaxed.value.view(*relaxed.value.shape, *[1] * (slope.dim() - relaxed.value.dim()))
    elif context.origin(indices[0], "sorted") is None:
        context.lose(call)
    return straight_through(hard, soft) if is_float(hard) else context.relax(call, hard, soft)


def _mean_entry(table: Tensor, indices: list[Any], position: int, choice: Tensor, axis: int) -> Tensor:
    """Return the mean of the table entries, weighted by a soft choice of positions."""
    weight = choice.to(table.dtype)
    if axis:
        average: Tensor = torch.tensordot(table, weight, dims=([axis], [-1])).movedim(-1, axis)
    elif len(indices) == 1:
        average = torch.tensordot(weight, table, dims=1)
    elif any(index is None for index in indices):
        average = table.new_zeros(())
    else:
        every_index = [index.unsqueeze(-1) for index in indices]
        every_index[position] = torch.arange(choice.shape[-1], device=table.device)
        entries = table[tuple(every_index)]
        average = (weight.view(*choice.shape, *[1] * (entries.dim() - choice.dim())) * entries).sum(choice.dim() - 1)
    return average
