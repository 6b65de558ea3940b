"""The same values in another shape or memory: views, copies, detached tensors."""

from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.context import Context
from kwbench.relaxation.distributions import certain, resized
from kwbench.relaxation.operation import Call
from kwbench.relaxation.relaxed_tensors import RelaxedTensor
from kwbench.relaxation.rule import rule
from kwbench.relaxation.tensors import aten, detached, is_float, tensors_in


def _is_simple(context: Context, call: Call) -> bool:
    """For `unless`: the argument is neither whole numbers with a soft distribution nor a float of known origin."""
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
    "permute.default",
    "transpose.int",
    "t.default",
    unless=_is_simple,
)
def _view(context: Context, call: Call) -> Any:
    x, relaxed = call.args[0], context.find(call.args[0])
    result: Tensor = call.exact()
    if relaxed is None:
        parts = context.origin(x, "sum of exp")
        return result if parts is None else context.set_origin(result, "sum of exp", *parts)
    moves = call.name.startswith(("permute", "transpose", "t."))
    if relaxed.choice is None and not moves and (call.name.startswith(("clone", "expand")) or result.shape == x.shape):
        _keep_order(context, x, result)
        return context.attach(result, relaxed)
    return rearranged(context, call, result)


def rearranged(context: Context, call: Call, result: Any) -> Any:
    """Give the results of an operation that only copies or moves whole numbers the soft distributions of those numbers."""
    x = call.args[0]
    choice = context.choice(x)
    if choice is None:
        context.lose(call)
        return result
    positions = call.operation(torch.arange(x.numel(), device=x.device).view(x.shape), *detached(call.args[1:]), **call.kwargs)
    rows = choice.reshape(-1, choice.shape[-1])
    for part, at in zip(tensors_in(result), tensors_in(positions), strict=True):
        context.attach(part, RelaxedTensor(choice=rows[at]))
    return result


@rule(
    "flip.default",
    "roll.default",
    "repeat.default",
    "tile.default",
    "repeat_interleave.self_int",
    "diagonal.default",
    "unfold.default",
    "movedim.int",
    "swapaxes.default",
    "as_strided.default",
    "pixel_shuffle.default",
    unless=_is_simple,
)
def _moved(context: Context, call: Call) -> Any:
    return rearranged(context, call, call.hard())


def _keep_order(context: Context, x: Tensor, result: Tensor) -> None:
    parts = context.origin(x, "sorted")
    if parts is not None and result.shape == x.shape:
        context.set_origin(result, "sorted", *parts)


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
    relaxed = context.find(x)
    if relaxed is not None:
        return context.run(call) if relaxed.value is not None else rearranged(context, call, call.hard())
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
    parts = call.args[0]
    choices = [context.choice(part) for part in parts]
    if all(choice is None for choice in choices) or any(is_float(part) or part.dtype == torch.bool for part in parts):
        return context.run(call)
    k = max(
        int(part.max()) + 1 if choice is None and part.numel() else 0 if choice is None else choice.shape[-1]
        for part, choice in zip(parts, choices, strict=True)
    )
    whole = [certain(part, k) if choice is None else resized(choice, k) for part, choice in zip(parts, choices, strict=True)]
    dim = call.option(1, "dim", 0)
    join = torch.cat if call.name.startswith("cat") else torch.stack
    return context.attach(call.hard(), RelaxedTensor(choice=join(whole, dim if dim >= 0 else dim - 1)))
