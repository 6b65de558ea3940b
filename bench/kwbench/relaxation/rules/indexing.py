"""Reading and writing at places that were drawn or chosen: scatter, gather, tables."""

from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight
from kwbench.relaxation.context import Call, Context, Soft, is_float, rule


@rule("scatter.value", "scatter.src")
def _scatter(context: Context, call: Call) -> Any:
    x, dim, index, source = call.args
    dim = dim % x.dim() if x.dim() else 0
    twin = context.twin(index)
    if is_float(x):
        source = context.number(source)
        source = source.to(x.dtype) if isinstance(source, Tensor) else source
        real = result = call.operation(x, dim, index, source)
    else:
        real = call.hard()
        source = context.number(source)
        result = context.number(x).scatter(dim, index, float(source) if not isinstance(source, Tensor) else source)
    share = None if twin is None else _share(twin, dim, result)
    if twin is not None and share is None:
        context.lose(call)
    if share is not None:
        size = source if not isinstance(source, Tensor) else _would_be(twin, result, index, source.detach(), dim)
        result = result + share * size
    if is_float(x):
        if share is not None:
            context.note(call)
        return straight(real.detach(), result) if result is not real else real
    return context.truth(call, real, result)


def _would_be(twin: Soft | None, result: Tensor, index: Tensor, source: Tensor, dim: int) -> Tensor:
    """What each place would hold if it were chosen."""
    there = result.detach()
    if source.shape[dim] == 1:
        return source
    among = None if twin is None else twin.among
    if among is not None and among.shape == there.shape and torch.equal(among.gather(dim, index), there.gather(dim, index)):
        return among  # its own value
    return torch.where(there != 0, there, source.amin(dim, keepdim=True))


def _share(twin: Soft, dim: int, result: Tensor) -> Tensor | None:
    """How much each place of `dim` is chosen, of the shape of the result."""
    if twin.members is not None:
        return twin.members if twin.members.shape == result.shape and twin.dim == dim else None
    if twin.choice is None:
        return None
    share = twin.choice.sum(dim).movedim(-1, dim)
    return share if share.shape == result.shape else None


@rule("scatter_add.default")
def _scatter_add(context: Context, call: Call) -> Any:
    x, dim, index, source = call.args
    twin = context.twin(index)
    result = context.plain(Call(call.operation, (x, dim, index.detach(), source), call.kwargs, call.where))
    if twin is None:
        return result
    if twin.choice is None or twin.choice.shape[-1] != x.shape[dim] or not is_float(result):
        context.lose(call)
        return result
    context.note(call)
    dim %= x.dim()
    put = (twin.choice * source.detach()[tuple(slice(size) for size in index.shape)].unsqueeze(-1)).sum(dim).movedim(-1, dim)
    return straight(result, put) if put.shape == result.shape else result


@rule("gather.default")
def _gather(context: Context, call: Call) -> Any:
    x, dim, index = call.args[:3]
    twin, table = context.twin(index), context.number(x)
    soft = table.gather(dim, index)
    real = soft if is_float(x) else call.hard()
    if twin is not None:
        dim %= x.dim()
        share = None
        if twin.choice is not None and index.shape[dim] == 1:
            share = twin.choice.movedim(-1, dim).squeeze(dim + 1)
        if share is None or share.shape != x.shape:
            if context.how(index, "sorted") is None:
                context.lose(call)
        else:
            context.note(call)
            soft = soft + (share * table.detach()).sum(dim, keepdim=True)
    if is_float(x):
        return straight(real.detach(), soft) if soft is not real else real
    return context.truth(call, real, soft)


@rule("embedding.default", "index.Tensor", "index_select.default")
def _lookup(context: Context, call: Call) -> Any:
    table, index = call.args[0], call.args[2] if call.name.startswith("index_select") else call.args[1]
    indices = list(index) if isinstance(index, list | tuple) else [index]
    chosen = [place for place, each in enumerate(indices) if context.twin(each) is not None]
    if not chosen:
        return context.plain(call)
    real, twin = call.hard(), context.twin(indices[chosen[0]])
    assert twin is not None
    number = context.number(table)
    soft = call.operation(number, *call.args[1:], **call.kwargs)
    along = call.args[1] % table.dim() if call.name.startswith("index_select") else 0
    if len(chosen) == 1 and twin.choice is not None and twin.choice.shape[-1] == number.shape[along or chosen[0]]:
        context.note(call)
        soft = soft + _read(number.detach(), indices, chosen[0], twin.choice, along)
    elif len(indices) == 1 and not along and twin.value is not None and indices[0].dtype != torch.bool and len(table) > 1:
        # A table read at a rounded number: its slope there.
        slope = torch.gradient(number.detach(), dim=0)[0][indices[0]]
        context.note(call)
        soft = soft + slope * twin.value.view(*twin.value.shape, *[1] * (slope.dim() - twin.value.dim()))
    elif context.how(indices[0], "sorted") is None:
        context.lose(call)
    return straight(real, soft) if is_float(real) else context.truth(call, real, soft)


def _read(table: Tensor, indices: list[Any], place: int, choice: Tensor, along: int) -> Tensor:
    """The mean of what stands at the places that a soft choice points to."""
    weight = choice.to(table.dtype)
    if along:
        read: Tensor = torch.tensordot(table, weight, dims=([along], [-1])).movedim(-1, along)
    elif len(indices) == 1:
        read = torch.tensordot(weight, table, dims=1)
    elif any(each is None for each in indices):
        read = table.new_zeros(())
    else:
        everywhere = [each.unsqueeze(-1) for each in indices]
        everywhere[place] = torch.arange(choice.shape[-1], device=table.device)
        found = table[tuple(everywhere)]
        read = (weight.view(*choice.shape, *[1] * (found.dim() - choice.dim())) * found).sum(choice.dim() - 1)
    return read
