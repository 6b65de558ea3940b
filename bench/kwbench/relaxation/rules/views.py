"""The same values in another form: views, copies, detached tensors."""

from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.context import Call, Context, Soft, aten, rule


def _no_twin(context: Context, call: Call) -> bool:
    """Neither indices nor a sum whose origin is known."""
    twin = context.twin(call.args[0])
    return (twin is None or twin.value is not None) and not context.derived(call)


@rule(
    "unsqueeze.default",
    "view.default",
    "expand.default",
    "_unsafe_view.default",
    "reshape.default",
    "squeeze.dim",
    "squeeze.default",
    "squeeze.dims",
    "clone.default",
    unless=_no_twin,
)
def _view(context: Context, call: Call) -> Any:
    x, twin = call.args[0], context.twin(call.args[0])
    result: Tensor = call.soft()
    if twin is not None and twin.choice is not None:
        return context.attach(result, Soft(choice=_same_form(twin.choice, result, call.name)))
    if twin is not None:
        members = twin.members
        if members is None or call.name.startswith(("clone", "expand")) or result.shape == x.shape:
            _keep_order(context, x, result)
            return context.attach(result, twin)
        context.lose(call)
        return result
    parts = context.how(x, "sum of exp")
    return result if parts is None else context.remember(result, "sum of exp", *parts)


def _keep_order(context: Context, x: Tensor, result: Tensor) -> None:
    parts = context.how(x, "sorted")
    if parts is not None and result.shape == x.shape:
        context.remember(result, "sorted", *parts)


def _same_form(choice: Tensor, result: Tensor, name: str) -> Tensor:
    k = choice.shape[-1]
    if name.startswith("expand"):
        return choice.view(*[1] * (result.dim() + 1 - choice.dim()), *choice.shape).expand(*result.shape, k)
    return choice.reshape(*result.shape, k)


@rule("permute.default", "transpose.int", "t.default", unless=_no_twin)
def _permute(context: Context, call: Call) -> Any:
    x, twin = call.args[0], context.twin(call.args[0])
    if twin is None or twin.choice is None:
        if twin is not None:
            context.lose(call)
        return call.soft() if twin is None else call.hard()
    dims = list(range(x.dim()))
    if call.name.startswith("permute"):
        dims = [dim % len(dims) for dim in call.args[1]]
    else:
        a, b = (call.args[1], call.args[2]) if call.name.startswith("transpose") else (0, -1)
        dims[a], dims[b] = dims[b], dims[a]
    return context.attach(call.soft(), Soft(choice=twin.choice.permute(*dims, -1)))


@rule("detach.default", "alias.default", "lift_fresh.default", "lift_fresh_copy.default")
def _detach(context: Context, call: Call) -> Any:
    x, twin = call.args[0], context.twin(call.args[0])
    result = aten.alias.default(x)
    if twin is not None:
        _keep_order(context, x, result)
        return context.attach(result, twin)
    if x.requires_grad and call.name.startswith("detach"):
        context.note(call)
    return result


@rule("split.Tensor", "split_with_sizes.default", "unbind.int", "chunk.default", "unsafe_split.Tensor")
def _split(context: Context, call: Call) -> Any:
    # As separate views: autograd refuses to write into one of several made at once.
    x = call.args[0]
    if context.twin(x) is not None:
        return context.plain(call)
    if call.name.startswith("unbind"):
        dim = call.option(1, "dim", 0)
        return [x.select(dim, place) for place in range(x.shape[dim])]
    dim = call.option(2, "dim", 0)
    parts, start = [], 0
    for piece in call.hard():
        parts.append(x.narrow(dim, start, piece.shape[dim]))
        start += piece.shape[dim]
    return parts


@rule("cat.default", "stack.default")
def _cat(context: Context, call: Call) -> Any:
    parts, dim = call.args[0], call.option(1, "dim", 0)
    twins = [context.twin(part) for part in parts]
    choices = [twin.choice for twin in twins if twin is not None and twin.choice is not None]
    if len(choices) != len(parts) or not parts:
        return context.plain(call)
    join = torch.cat if call.name.startswith("cat") else torch.stack
    dim = dim if dim >= 0 else dim - 1
    return context.attach(call.hard(), Soft(choice=join(choices, dim)))
