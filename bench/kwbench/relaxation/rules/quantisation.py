"""Quantised tensors: a soft version in floats follows them from `quantize` to `dequantize`, with the gradients of floats."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.relaxed_tensors import RelaxedTensor
from kwbench.relaxation.rule import RULES, has_no_gradient, rule
from kwbench.relaxation.tensors import aten

# What an operation on quantised tensors computes, from its float arguments and the call.
_Float = Callable[[list[Any], Call], Tensor]


def _attach(context: Context, call: Call, hard: Tensor, soft: Tensor) -> Tensor:
    """Attach to a quantised result its values with the gradient of `soft`, and return it."""
    context.count(call)
    return context.attach(hard, RelaxedTensor(straight_through(hard.dequantize(), soft)))


@rule(
    "quantize_per_tensor.default",
    "quantize_per_tensor.tensor_qparams",
    "quantize_per_tensor_dynamic.default",
    "quantize_per_channel.default",
    unless=has_no_gradient,
)
def _quantize(context: Context, call: Call) -> Any:
    return _attach(context, call, call.hard(), call.args[0])


@rule("dequantize.self")
def _dequantize(context: Context, call: Call) -> Any:
    relaxed = context.find(call.args[0])
    return call.hard() if relaxed is None or relaxed.value is None else straight_through(call.hard(), relaxed.value)


def _in_floats(compute: _Float) -> Callable[[Context, Call], Any]:
    """Return the rule of an operation of torch.ops.quantized that computes this of floats."""

    def apply(context: Context, call: Call) -> Any:
        hard = call.hard()
        if not any(context.has_gradient(argument) for argument in _flat(call.args)):
            return hard
        try:
            soft = compute([_as_float(context, argument) for argument in call.args], call)
        except (RuntimeError, TypeError, AttributeError):
            context.lose(call)
            return hard
        if hard.is_quantized:
            return _attach(context, call, hard, soft)
        context.count(call)
        return straight_through(hard, soft)

    return apply


def _flat(values: Any) -> list[Any]:
    return [part for value in values for part in (_flat(value) if isinstance(value, list | tuple) else [value])]


def _as_float(context: Context, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_float(context, part) for part in value]
    return context.as_float(value) if isinstance(value, Tensor) and value.is_quantized else value


def _linear(args: list[Any], call: Call) -> Tensor:
    weight, bias = args[1].unpack()
    return F.linear(args[0], weight.dequantize(), bias)


def _convolution(args: list[Any], call: Call) -> Tensor:
    packed = args[1]
    weight, bias = packed.unpack()
    convolve: Callable[..., Tensor] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[args[0].dim()]
    geometry = [packed.stride(), packed.padding(), packed.dilation()]
    if args[0].dim() == 3:  # packed as a convolution of images one row high
        weight, geometry = weight.dequantize().squeeze(2), [part[-1:] for part in geometry]
    else:
        weight = weight.dequantize()
    return convolve(args[0], weight, bias, *geometry, packed.groups())


_FLOATS: dict[str, _Float] = {
    "add": lambda args, call: args[0] + args[1],
    "add_scalar": lambda args, call: args[0] + args[1],
    "batch_norm2d": lambda args, call: F.batch_norm(args[0], args[3], args[4], args[1], args[2], eps=args[5]),
    "cat": lambda args, call: torch.cat(args[0], args[1]),
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv2d_dynamic": _convolution,
    "conv3d": _convolution,
    "hardswish": lambda args, call: F.hardswish(args[0]),
    "leaky_relu": lambda args, call: F.leaky_relu(args[0], args[1]),
    "linear": _linear,
    "linear_dynamic": _linear,
    "mul": lambda args, call: args[0] * args[1],
    "mul_scalar": lambda args, call: args[0] * args[1],
    "relu6": lambda args, call: F.relu6(args[0]),
    "sigmoid": lambda args, call: args[0].sigmoid(),
}


def _pooled(args: list[Any], call: Call) -> Tensor:
    pool = F.max_pool1d if call.name.startswith("quantized_max_pool1d") else F.max_pool2d
    pooled: Tensor = pool(*args)
    return pooled


def _rectified(compute: _Float) -> _Float:
    return lambda args, call: F.relu(compute(args, call))


def _register() -> None:
    """Register the operations of torch.ops.quantized that this build of torch has, plain and with a ReLU at their end."""
    for name, compute in _FLOATS.items():
        stem, dynamic = name.removesuffix("_dynamic"), "_dynamic" if name.endswith("_dynamic") else ""
        rectified = f"{stem}_relu{dynamic}"
        for spelling, function in ((name, compute), (rectified, _rectified(compute))):
            packet = getattr(torch.ops.quantized, spelling, None)
            for overload in packet.overloads() if packet is not None else ():
                RULES[getattr(packet, overload)] = _in_floats(function)
    for packet in (aten.quantized_max_pool1d, aten.quantized_max_pool2d):
        RULES[packet.default] = _in_floats(_pooled)


_register()
