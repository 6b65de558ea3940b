"""Relaxation rules for indexing operations: scatter, gather and table lookups.

If an index depends on the pixels, it has a relaxed version: a soft choice of positions, or a soft mask over them (see
`RelaxedTensor`). The rules compute the result's gradient with respect to that choice or mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.distributions import LARGEST, pushed_forward, resized
from kwbench.relaxation.operation import Call
from kwbench.relaxation.relaxed_tensors import RelaxedTensor
from kwbench.relaxation.rule import rule
from kwbench.relaxation.rules.views import rearranged
from kwbench.relaxation.tensors import broadcast_shape, is_float


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
    mask = None if relaxed is None else _soft_mask(context, relaxed, index, dim, result)
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


def _soft_mask(context: Context, relaxed: RelaxedTensor, index: Tensor, dim: int, result: Tensor) -> Tensor | None:
    """Return how strongly the index names each position of `dim`, in the shape of the result; None if that is unknown."""
    if relaxed.members is not None:
        return relaxed.members if relaxed.members.shape == result.shape and relaxed.dim == dim else None
    choice = context.choice_among(index, result.shape[dim])
    if choice is None:
        return None
    mask = choice.sum(dim).movedim(-1, dim)
    return mask if mask.shape == result.shape else None


@rule("scatter_add.default")
def _scatter_add(context: Context, call: Call) -> Any:
    x, dim, index, source = call.args
    relaxed = context.find(index)
    if relaxed is None:
        return context.run(call)
    dim %= x.dim()
    choice = context.choice_among(index, x.shape[dim])
    result = call.operation(x, dim, index, context.as_float(source).to(x.dtype)) if is_float(x) else call.hard()
    if choice is None:
        context.lose(call)
        return result
    added = context.as_float(source).detach()[tuple(slice(size) for size in index.shape)].unsqueeze(-1)
    soft = (choice * added).sum(dim).movedim(-1, dim)
    if soft.shape != result.shape:
        context.lose(call)
        return result
    if not is_float(result):
        return context.relax(call, result, context.as_float(result) + soft)
    context.count(call)
    return straight_through(result, soft)


@rule("bincount.default")
def _bincount(context: Context, call: Call) -> Any:
    hard, weights = call.hard(), call.option(1, "weights")
    choice = context.choice_among(call.args[0], len(hard))
    if choice is None:
        if any(context.has_gradient(argument) for argument in (call.args[0], weights)):
            context.lose(call)
        return hard
    soft = choice.sum(0) if weights is None else (choice * context.as_float(weights).unsqueeze(-1)).sum(0)
    if not is_float(hard):
        return context.relax(call, hard, soft)
    context.count(call)
    return straight_through(hard, soft.to(hard.dtype))


@rule("gather.default")
def _gather(context: Context, call: Call) -> Any:
    table, dim, index = call.args[:3]
    indices: list[Any] = []
    for axis, size in enumerate(index.shape):
        form = [-1 if axis == other else 1 for other in range(index.dim())]
        indices.append(index if axis == dim % index.dim() else torch.arange(size, device=index.device).view(form))
    return _look_up(context, call, table, indices) if table.dim() else context.run(call)


@rule("take.default")
def _take(context: Context, call: Call) -> Any:
    table, index = call.args
    if context.choice(table) is not None:
        context.lose(call)
        return call.hard()
    return _look_up(context, call, table, [index], flat=True)


@rule("embedding.default", "index.Tensor", "index_select.default")
def _lookup(context: Context, call: Call) -> Any:
    table = call.args[0]
    if call.name.startswith("index_select"):
        return _look_up(context, call, table, [*[None] * (call.args[1] % table.dim()), call.args[2]])
    index = call.args[1]
    return _look_up(context, call, table, list(index) if isinstance(index, list | tuple) else [index])


def _look_up(context: Context, call: Call, table: Tensor, indices: list[Any], *, flat: bool = False) -> Any:
    """Look entries of a table up; `indices` are one for each of its first dimensions, None for all of a dimension.

    With `flat` the only index counts along the flattened table. Each index that depends on the pixels adds the gradient of its
    own choice, while the others keep their values.
    """
    relaxed_at = [position for position, index in enumerate(indices) if context.find(index) is not None]
    choice = context.choice(table)
    if not relaxed_at:
        return context.run(call) if choice is None else rearranged(context, call, call.hard())
    hard = call.hard()
    soft = call.operation(context.as_float(table), *call.args[1:], **call.kwargs)
    shares = None if choice is None else _moved_choice(call, table, choice)
    values = (context.as_float(table) if is_float(table) else table).detach()
    values = values.flatten() if flat else values
    followed = False
    for position in relaxed_at:
        relaxed = context.find(indices[position])
        assert relaxed is not None
        at = [index.detach() if isinstance(index, Tensor) else index for index in indices]
        if any(isinstance(index, Tensor) and index.dtype == torch.bool for index in at):
            continue
        by_choice = _by_choice(values, at, position, relaxed, hard.numel())
        if by_choice is not None:
            followed = True
            probabilities, entries = by_choice
            pushed = None if is_float(hard) or hard.dtype == torch.bool else pushed_forward(probabilities, entries)
            if pushed is not None and (shares is not None or not soft.requires_grad):
                shares = pushed if shares is None else _with_gradient_of(shares, pushed)
            soft = soft + (probabilities * entries.to(soft.dtype)).sum(-1)
        elif relaxed.value is not None and values.shape[position] > 1:
            # The index is a rounded number: the slope of the table at the entry is the gradient.
            followed = True
            up, down = (indices[position] + step for step in (1, -1))
            up, down = up.clamp(max=values.shape[position] - 1), down.clamp(min=0)
            width = _placed(up - down, at, soft.dim())
            rise = _entries(values, at, position, up).to(soft.dtype) - _entries(values, at, position, down).to(soft.dtype)
            soft = soft + rise / width * _placed(relaxed.value.to(soft.dtype), at, soft.dim())
        elif context.origin(indices[position], "sorted") is not None and context.has_gradient(table):
            followed = True
    if not followed:
        context.lose(call)
    elif is_float(hard):
        context.count(call)
    if is_float(hard):
        return straight_through(hard, soft)
    return context.relax(call, hard, soft) if shares is None else context.relax_choice(call, hard, shares)


def _by_choice(
    table: Tensor, indices: list[Any], position: int, relaxed: RelaxedTensor, size: int
) -> tuple[Tensor, Tensor] | None:
    """Return the soft shares (s, k) of the k entries that a chosen index may point to, and these entries (s, k).

    None if the index is no choice, or if there are too many entries; `size` is the number of those that are read.
    """
    k = table.shape[position]
    choice = relaxed.distribution() if size * k <= LARGEST else None
    if choice is None:
        return None
    at = [index.unsqueeze(-1) if isinstance(index, Tensor) else index for index in indices]
    at[position] = torch.arange(k, device=table.device).view(*[1] * indices[position].dim(), k)
    entries = _read(table, at)
    start, block = _block(indices)
    entries = entries.movedim(start + len(block), -1)
    return _placed(resized(choice, k), indices, entries.dim() - 1, (k,)), entries


def _block(indices: list[Any]) -> tuple[int, torch.Size]:
    """Return where in the result the dimensions of the indices begin, and their sizes."""
    tensors = [position for position, index in enumerate(indices) if index is not None]
    block = broadcast_shape(*(indices[position].shape for position in tensors))
    together = tensors[-1] - tensors[0] + 1 == len(tensors)
    return tensors[0] if together else 0, block


def _read(table: Tensor, indices: list[Any]) -> Tensor:
    return table[tuple(slice(None) if index is None else index for index in indices)]


def _entries(table: Tensor, indices: list[Any], position: int, index: Tensor) -> Tensor:
    """Return the entries with another index at one position."""
    return _read(table, [index if other == position else old for other, old in enumerate(indices)])


def _placed(values: Tensor, indices: list[Any], dims: int, row: Sequence[int] = ()) -> Tensor:
    """Return values, a row of them for each place that the indices name, to broadcast against a result of `dims` dimensions."""
    start, block = _block(indices)
    return values.expand(*block, *row).reshape(*[1] * start, *block, *[1] * (dims - start - len(block)), *row)


def _moved_choice(call: Call, table: Tensor, choice: Tensor) -> Tensor:
    """Return the soft distributions of the entries that a lookup copies from a table of whole numbers."""
    positions = call.operation(
        torch.arange(table.numel(), device=table.device).view(table.shape), *call.args[1:], **call.kwargs
    )
    return choice.reshape(-1, choice.shape[-1])[positions]


def _with_gradient_of(shares: Tensor, others: Tensor) -> Tensor:
    """Return shares (s, k), with the gradient of others (s, m) as well."""
    k = max(shares.shape[-1], others.shape[-1])
    return resized(shares, k) + (resized(others, k) - resized(others, k).detach())
