"""A network as a graph of affine operations, sums, and units that keep or drop their value.

`trace` follows the forward pass by torch.fx. It refuses whatever it does not know, so that a graph always stands for the
network itself.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kwbench.certification import competitions, operations
from kwbench.certification.competitions import Groups
from kwbench.certification.operations import Affine
from kwbench.errors import CannotEvaluate
from kwbench.networks.activations import Kwta, Lwta


@dataclass(frozen=True)
class Node:
    """A value of the network: the shape of one sample's, and the nodes that it is computed from, by number.

    One of three kinds: `affine` of one parent; units that keep or drop (`units`), ReLU where `groups` is None; otherwise the
    sum of its parents. The first node of a graph is the input and has no parent. `multiply_adds` is what an affine operation
    costs for one sample.
    """

    shape: torch.Size
    parents: tuple[int, ...] = ()
    affine: Affine | None = None
    units: bool = False
    groups: Groups | None = None
    multiply_adds: int = 0


Graph = list[Node]
"""Nodes in the order of computation; the last one is the output."""


def trace(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Return the graph of a module in evaluation mode that takes images of `shape` (c, h, w).

    Raises CannotEvaluate if the module is not in float32, or not made of known piecewise linear layers.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
        raise CannotEvaluate("not certified: the network computes in another precision than float32")
    try:
        graph = fx.GraphModule(module, _Tracer().trace(module))
    except Exception as failure:
        reason = str(failure).split("\n", maxsplit=1)[0]
        raise CannotEvaluate(
            f"not certified: the forward pass cannot be followed ({type(failure).__name__}: {reason})"
        ) from failure
    builder = _Builder(graph, torch.Size(shape))
    result = builder.run(torch.zeros((1, *shape)))
    if not isinstance(result, _Value):
        raise CannotEvaluate("not certified: the network does not return a single tensor")
    return builder.nodes if result.node == len(builder.nodes) - 1 else builder.nodes[: result.node + 1]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Kwta | Lwta) or super().is_leaf_module(m, module_qualified_name)


class _MultiplyAdds(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts those of products and convolutions, as torch's FlopCounterMode does, which imports Triton and the compiler."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation, aten = func.overloadpacket, torch.ops.aten
        if operation in (aten.mm, aten.bmm, aten.addmm, aten.baddbmm):
            self.total += result.numel() * args[-2].shape[-1]
        elif operation in (aten.convolution, aten._convolution):
            x, weights, transposed = args[0], args[1], args[6]
            positions = x.shape[2:] if transposed else result.shape[2:]
            self.total += len(x) * math.prod(positions) * weights.numel()
        return result


@dataclass(frozen=True)
class _Value:
    """A node of the graph during tracing."""

    node: int


def _refuse(what: object) -> CannotEvaluate:
    return CannotEvaluate(f"not certified: {what} is no piecewise linear layer that the certificates know")


class _Builder(fx.Interpreter):
    """Runs the traced module on nodes instead of tensors. Whatever is no node is a constant."""

    def __init__(self, module: fx.GraphModule, shape: torch.Size) -> None:
        super().__init__(module)
        self.nodes: Graph = [Node(shape)]

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        if len(self.env):
            raise _refuse("a second argument of the forward pass")
        return _Value(0)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        (value,) = args
        if isinstance(module, nn.ReLU):
            return self._units(value, None)
        if isinstance(module, Kwta | Lwta):
            return self._units(value, _groups(module, self._shape(value)))
        if isinstance(module, nn.MaxPool2d):
            return self._max_pool(value, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        if isinstance(module, nn.AdaptiveMaxPool2d):
            return self._adaptive_max_pool(value, module.output_size)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return self._affine(value, operations.averaged(_sizes(module.output_size)))
        affine = operations.of_module(module)
        if affine is None:
            raise _refuse(f"the layer {type(module).__name__}")
        return self._affine(value, affine)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not any(isinstance(argument, _Value) for argument in args):
            return super().call_function(target, args, kwargs)
        rule = _FUNCTIONS.get(target)
        if rule is None:
            raise _refuse(f"the function {getattr(target, '__name__', target)}")
        return rule(self, *args, **kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(args[0], _Value):
            return super().call_method(target, args, kwargs)
        rule = _METHODS.get(target)
        if rule is None:
            raise _refuse(f"the method {target}")
        return rule(self, *args, **kwargs)

    def _shape(self, value: _Value) -> torch.Size:
        return self.nodes[value.node].shape

    def _add(self, node: Node) -> _Value:
        self.nodes.append(node)
        return _Value(len(self.nodes) - 1)

    def _affine(self, value: _Value, affine: Affine) -> _Value:
        with torch.no_grad(), _MultiplyAdds() as counter:
            result = affine.forward(torch.zeros((1, *self._shape(value)), dtype=torch.double))
        multiply_adds = max(counter.total, result.numel())
        return self._add(Node(result.shape[1:], (value.node,), affine=affine, multiply_adds=multiply_adds))

    def _units(self, value: _Value, groups: Groups | None) -> _Value:
        return self._add(Node(self._shape(value), (value.node,), units=True, groups=groups))

    def relu(self, value: _Value, inplace: bool = False) -> _Value:
        """max(x, 0)."""
        return self._units(value, None)

    def clamp(self, value: _Value, min: float | None = None, max: float | None = None) -> _Value:
        """Only as ReLU."""
        if min != 0 or max is not None:
            raise _refuse(f"clamp({min}, {max})")
        return self._units(value, None)

    def plus(self, one: Any, other: Any) -> _Value:
        """The sum of two values, or of a value and a constant."""
        if isinstance(one, _Value) and isinstance(other, _Value):
            if self._shape(one) != self._shape(other):
                raise _refuse("a sum with broadcasting")
            return self._add(Node(self._shape(one), (one.node, other.node)))
        value, constant = (one, other) if isinstance(one, _Value) else (other, one)
        return self._affine(value, operations.shifted(constant))

    def minus(self, one: Any, other: Any) -> _Value:
        """The difference, likewise."""
        if isinstance(one, _Value) and isinstance(other, _Value):
            return self.plus(one, self._affine(other, operations.scaled(-1.0)))
        if isinstance(one, _Value):
            return self._affine(one, operations.shifted(-torch.as_tensor(other)))
        return self._affine(other, operations.shifted(one, sign=-1.0))

    def times(self, one: Any, other: Any) -> _Value:
        """The product with a constant."""
        if isinstance(one, _Value) and isinstance(other, _Value):
            raise _refuse("a product of two values")
        value, constant = (one, other) if isinstance(one, _Value) else (other, one)
        return self._affine(value, operations.scaled(constant))

    def over(self, one: Any, other: Any) -> _Value:
        """The quotient by a constant."""
        if isinstance(other, _Value):
            raise _refuse("a division by a value")
        return self._affine(one, operations.divided(other))

    def flatten(self, value: _Value, start_dim: int = 0, end_dim: int = -1) -> _Value:
        """From dimension 1 on only."""
        shape = self._shape(value)
        if start_dim < 1:
            raise _refuse("flattening the batch")
        end = end_dim if end_dim >= 0 else len(shape) + 1 + end_dim
        merged = (*shape[: start_dim - 1], math.prod(shape[start_dim - 1 : end]), *shape[end:])
        return self._affine(value, operations.reshaped(torch.Size(merged)))

    def reshape(self, value: _Value, *sizes: Any) -> _Value:
        """Any change of shape that leaves the batch alone."""
        wanted = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list | torch.Size) else sizes
        shape = torch.zeros((1, *self._shape(value))).reshape(*wanted).shape
        if shape[0] != 1:
            raise _refuse("a change of shape across the batch")
        return self._affine(value, operations.reshaped(shape[1:]))

    def size(self, value: _Value, dim: int | None = None) -> Any:
        """The size with a batch of one."""
        shape = torch.Size((1, *self._shape(value)))
        return shape if dim is None else shape[dim]

    def attribute(self, value: _Value, name: str) -> Any:
        """Only the shape."""
        if name != "shape":
            raise _refuse(f"the attribute {name}")
        return self.size(value)

    def average(self, value: _Value, dim: Any, keepdim: bool = False) -> _Value:
        """The mean over the width and height."""
        dims = {d % (len(self._shape(value)) + 1) for d in (dim if isinstance(dim, tuple | list) else (dim,))}
        if len(self._shape(value)) != 3 or dims != {2, 3}:
            raise _refuse(f"the mean over {dim}")
        pooled = self._affine(value, operations.averaged((1, 1)))
        return pooled if keepdim else self.flatten(pooled, 1)

    def adaptive_average(self, value: _Value, output_size: Any) -> _Value:
        """adaptive_avg_pool2d."""
        return self._affine(value, operations.averaged(_sizes(output_size)))

    def average_pool(self, value: _Value, *args: Any, **kwargs: Any) -> _Value:
        """avg_pool2d."""
        affine = operations.of_module(nn.AvgPool2d(*args, **kwargs))
        assert affine is not None
        return self._affine(value, affine)

    def dropout(self, value: _Value, *args: Any, training: bool = True, **kwargs: Any) -> _Value:
        """Nothing, unless it is on."""
        if training:
            raise _refuse("dropout in evaluation mode")
        return value

    def _max_pool(
        self,
        value: _Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> _Value:
        kernel, pad, dil = _sizes(kernel_size), _sizes(padding), _sizes(dilation)
        step = kernel if stride is None else _sizes(stride)
        shape = self._shape(value)
        spans = [
            competitions.strided_spans(shape[1 + axis], kernel[axis], step[axis], pad[axis], dil[axis], ceil_mode)
            for axis in range(2)
        ]
        return self._largest(value, spans)

    def _adaptive_max_pool(self, value: _Value, output_size: Any, return_indices: bool = False) -> _Value:
        shape, sizes = self._shape(value), _sizes(output_size)
        return self._largest(value, [competitions.adaptive_spans(shape[1 + axis], sizes[axis]) for axis in range(2)])

    def _largest(self, value: _Value, spans: list[list[list[int]]]) -> _Value:
        """Max pooling: copy the values of each window, let one of them win, and sum."""
        shape = self._shape(value)
        if len(shape) != 3:
            raise _refuse("pooling of anything but images")
        indices, window = competitions.windows(shape[0], spans[0], spans[1], (shape[1], shape[2]))
        pooled = torch.Size((shape[0], len(spans[0]), len(spans[1])))
        count = math.prod(pooled)
        copies = self._affine(value, operations.copied(lambda x: x.flatten(1)[:, indices]))
        winners = self._units(copies, Groups.of(window, torch.ones(count, dtype=torch.long)))

        # Exact: all but one of the terms are zero.
        def collect(x: Tensor) -> Tensor:
            return x.new_zeros((len(x), count)).index_add(1, window, x).view(len(x), *pooled)

        return self._affine(winners, operations.copied(collect))


def _sizes(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _groups(module: Kwta | Lwta, shape: torch.Size) -> Groups:
    """Return the competitions of a winner-take-all layer among the values of one sample."""
    units = math.prod(shape)
    if isinstance(module, Kwta):
        if module.within == "channel" and len(shape) > 1:
            group = torch.arange(shape[0]).repeat_interleave(units // shape[0])
        else:
            group = torch.zeros(units, dtype=torch.long)
        counts = torch.bincount(group)
        return Groups.of(group, torch.tensor([module.winners(int(count)) for count in counts]))
    area = units // shape[0]
    block = torch.arange(shape[0]) // module.units
    group = (block[:, None] * area + torch.arange(area)[None]).flatten()
    return Groups.of(group, torch.ones(int(group.max()) + 1, dtype=torch.long))


_Rule = Callable[..., Any]
_FUNCTIONS: dict[Any, _Rule] = {
    F.relu: _Builder.relu,
    torch.relu: _Builder.relu,
    torch.relu_: _Builder.relu,
    torch.clamp: _Builder.clamp,
    operator.add: _Builder.plus,
    operator.iadd: _Builder.plus,
    torch.add: _Builder.plus,
    operator.sub: _Builder.minus,
    torch.sub: _Builder.minus,
    operator.mul: _Builder.times,
    torch.mul: _Builder.times,
    operator.truediv: _Builder.over,
    torch.div: _Builder.over,
    torch.flatten: _Builder.flatten,
    torch.reshape: _Builder.reshape,
    torch.mean: _Builder.average,
    F.adaptive_avg_pool2d: _Builder.adaptive_average,
    F.avg_pool2d: _Builder.average_pool,
    F.max_pool2d: _Builder._max_pool,
    F.adaptive_max_pool2d: _Builder._adaptive_max_pool,
    torch.max_pool2d: _Builder._max_pool,
    F.dropout: _Builder.dropout,
    getattr: _Builder.attribute,
}
_METHODS: dict[str, _Rule] = {
    "relu": _Builder.relu,
    "relu_": _Builder.relu,
    "clamp": _Builder.clamp,
    "clamp_min": _Builder.clamp,
    "add": _Builder.plus,
    "sub": _Builder.minus,
    "mul": _Builder.times,
    "div": _Builder.over,
    "flatten": _Builder.flatten,
    "view": _Builder.reshape,
    "reshape": _Builder.reshape,
    "size": _Builder.size,
    "mean": _Builder.average,
    "contiguous": lambda builder, value, **_: value,
}
