"""Comparisons and logic: booleans with the gradient of a sigmoid."""

from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.rule import rule


@rule("gt.Tensor", "gt.Scalar", "ge.Tensor", "ge.Scalar", "lt.Tensor", "lt.Scalar", "le.Tensor", "le.Scalar")
def _order(context: Context, call: Call) -> Any:
    hard = call.hard()
    if not any(context.has_gradient(argument) for argument in call.args[:2]):
        return hard
    if (pushed := context.push(call)) is not None:
        return pushed
    a, b = (context.as_float(argument) for argument in call.args[:2])
    gap = a - b if call.name[0] == "g" else b - a
    return context.relax(call, hard, torch.sigmoid(gap / context.scale(gap)))


@rule("signbit.default")
def _signbit(context: Context, call: Call) -> Any:
    x = call.args[0]
    return context.relax(call, call.hard(), torch.sigmoid(-x / context.scale(x)))


@rule("eq.Tensor", "eq.Scalar", "ne.Tensor", "ne.Scalar")
def _equal(context: Context, call: Call) -> Any:
    hard = call.hard()
    if not any(context.has_gradient(argument) for argument in call.args[:2]):
        return hard
    if (pushed := context.push(call)) is not None:
        return pushed
    a, b = (context.as_float(argument) for argument in call.args[:2])
    gap = a - b
    inside = gap.detach().nan_to_num(0.0, 0.0, 0.0)
    scaled = gap / context.scale(gap)
    # Equality with the largest or the smallest value is a mask of the winner: a sigmoid. Otherwise a bell curve.
    soft = torch.where(
        context.holds_throughout(inside <= 0),
        torch.sigmoid(scaled),
        torch.where(context.holds_throughout(inside >= 0), torch.sigmoid(-scaled), 1 / (1 + scaled.square())),
    )
    return context.relax(call, hard, 1 - soft if call.name[0] == "n" else soft)


@rule("logical_not.default", "bitwise_not.default")
def _not(context: Context, call: Call) -> Any:
    x, hard = call.args[0], call.hard()
    if not context.has_gradient(x):
        return hard
    if hard.dtype != torch.bool:
        return _on_bits(context, call, hard)
    return context.relax(call, hard, 1 - _soft_truth(context, x))


@rule(
    "logical_and.default",
    "bitwise_and.Tensor",
    "logical_or.default",
    "bitwise_or.Tensor",
    "logical_xor.default",
    "bitwise_xor.Tensor",
)
def _connective(context: Context, call: Call) -> Any:
    hard = call.hard()
    if not any(context.has_gradient(argument) for argument in call.args[:2]):
        return hard
    if hard.dtype != torch.bool:
        return _on_bits(context, call, hard)
    a, b = (_soft_truth(context, argument) for argument in call.args[:2])
    soft = a * b if "and" in call.name else a + b - a * b if "_or" in call.name else a + b - 2 * a * b
    return context.relax(call, hard, soft)


def _on_bits(context: Context, call: Call, hard: Tensor) -> Tensor:
    """Relax an operation on the bits of whole numbers, by their soft distributions."""
    pushed = context.push(call)
    if pushed is None:
        context.lose(call)
    return hard if pushed is None else pushed


def _soft_truth(context: Context, x: Tensor) -> Tensor:
    """The truth of x in [0, 1], as a float with a gradient; of numbers, a tanh of their magnitude."""
    value: Tensor = context.as_float(x)
    return value if x.dtype == torch.bool else torch.tanh(value.abs() / context.scale(value))


@rule("any.default", "any.dim", "any.dims", "all.default", "all.dim", "all.dims")
def _quantifier(context: Context, call: Call) -> Any:
    hard = call.hard()
    if not context.has_gradient(call.args[0]):
        return hard
    value = _soft_truth(context, call.args[0])
    extreme = torch.amax if call.name.startswith("any") else torch.amin
    dims = call.option(1, "dim", ())
    dims = tuple(range(value.dim())) if dims is None else dims
    return context.relax(call, hard, extreme(value, dim=dims, keepdim=call.option(2, "keepdim", False)))
