"""The same values in another shape or memory: views, copies, detached tensors."""

from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.relaxed_tensors import RelaxedTensor
from kwbench.relaxation.rule import rule
from kwbench.relaxation.tensors import aten


def _is_simple(context: Context, call: Call) -> bool:
    """For `unless`: the argument is neither indices with a soft choice nor a float of known origin."""
    relaxed = context.find(call.args[0])
    return (relaxed is None or relaxed.value is not None) and not context.knows_origins(call)


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
    unless=_is_simple,
)
def _view(context: Context, call: Call) -> Any:
    x, relaxed = call.args[0], context.find(call.args[0])
    result: Tensor = call.exact()
    if relaxed is not None and relaxed.choice is not None:
        return context.attach(result, RelaxedTensor(choice=_reshape_choice(relaxed.choice, result, call.name)))
    if relaxed is not None:
        members = relaxed.members
        if members is None or call.name.startswith(("clone", "expand")) or result.shape == x.shape:
            _keep_order(context, x, result)
            return context.attach(result, relaxed)
        context.lose(call)
        return result
    parts = context.origin(x, "sum of exp")
    return result if parts is None else context.set_origin(result, "sum of exp", *parts)


def _keep_order(context: Context, x: Tensor, result: Tensor) -> None:
    parts = context.origin(x, "sorted")
    if parts is not None and result.shape == x.shape:
        context.set_origin(result, "sorted", *parts)


def _reshape_choice(choice: Tensor, result: Tensor, name: str) -> Tensor:
    k = choice.shape[-1]
    if name.startswith("expand"):
        return choice.view(*[1] * (result.dim() + 1 - choice.dim()), *choice.shape).expand(*result.shape, k)
    return choice.reshape(*result.shape, k)


@rule("permute.default", "transpose.int", "t.default", unless=_is_simple)
def _permute(context: Context, call: Call) -> Any:
    x, relaxed = call.args[0], context.find(call.args[0])
    if relaxed is None or relaxed.choice is None:
        if relaxed is not None:
            context.lose(call)
        return call.exact() if relaxed is None else call.hard()
    dims = list(range(x.dim()))
    if call.name.startswith("permute"):
        dims = [dim % len(dims) for dim in call.args[1]]
    else:
        a, b = (call.args[1], call.args[2]) if call.name.startswith("transpose") else (0, -1)
        dims[a], dims[b] = dims[b], dims[a]
    return context.attach(call.exact(), RelaxedTensor(choice=relaxed.choice.permute(*dims, -1)))


@rule("detach.default", "alias.default", "lift_fresh.default", "lift_fresh_copy.default")
def _detach(context: Context, call: Call) -> Any:
    x, relaxed = call.args[0], context.find(call.args[0])
    result = aten.alias.default(x)
    if relaxed is not None:
        _keep_order(context, x, result)
        return context.attach(result, relaxed)
    if x.requires_grad and call.name.startswith("detach"):
        context.count(call)
    return result


@rule("split.Tensor", "split_with_sizes.default", "unbind.int", "chunk.default", "unsafe_split.Tensor")
def _split(context: Context, call: Call) -> Any:
    # Separate views, because autograd refuses to write into one of several that one operation made.
    x = call.args[0]
    if context.find(x) is not None:
        return context.run(call)
    if call.name.startswith("unbind"):
        dim = call.option(1, "dim", 0)
        return [x.select(dim, position) for position in range(x.shape[dim])]
    dim = call.option(2, "dim", 0)
    parts, start = [], 0
    for piece in call.hard():
        parts.append(x.narrow(dim, start, piece.shape[dim]))
        start += piece.shape[dim]
    return parts


@rule("cat.default", "stack.default")
def _cat(context: Context, call: Call) -> Any:
    parts, dim = call.args[0], call.option(1, "dim", 0)
    relaxations = [context.find(part) for part in parts]
    choices = [relaxed.choice for relaxed in relaxations if relaxed is not None and relaxed.choice is not None]
    if len(choices) != len(parts) or not parts:
        return context.run(call)
    join = torch.cat if call.name.startswith("cat") else torch.stack
    dim = dim if dim >= 0 else dim - 1
    return context.attach(call.hard(), RelaxedTensor(choice=join(choices, dim)))
