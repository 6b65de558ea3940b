"""Soft gradients for operations that hide theirs. Values are never touched, only what flows back.

A real result of a comparison, a rounding or a draw keeps its value and gets the gradient of a smooth function beside it. Truth
values and whole numbers have no gradient in PyTorch: they travel with a float twin, `Soft`, until they meet a float again.
How soft: every scale is `softness` times a mean of the data, sample by sample, so that no backward pass is flat.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


@dataclass(slots=True)
class Soft:
    """What travels beside a tensor of truth values or whole numbers, of shape s.

    `value` (s), float: the same numbers, with a gradient. For indices: `choice` (s + (k,)), a soft distribution over the k places
    that each may point to; or `members`, a soft mask over all places of `dim`, of which the indices name the best.
    """

    value: Tensor | None = None
    choice: Tensor | None = None
    members: Tensor | None = None
    dim: int = 0


@dataclass(slots=True)
class Context:
    """One replay: how soft, for how many samples, which tensors travel with a twin, and what was relaxed or lost."""

    softness: float
    batch: int
    # Whether to take tensors from outside for images of what was there before.
    guess: bool = False
    # Whether recorded results still hold.
    unwritten: bool = False
    soft: dict[int, Soft] = field(default_factory=dict)
    relaxed: Counter[tuple[str, str]] = field(default_factory=Counter)
    # The operations, by id, behind which the gradient ends.
    lost: set[int] = field(default_factory=set)
    # How a float came about, for spellings that only together saturate: exp over sum, and the like.
    origin: dict[int, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)
    # The latest float of each shape that depends on the pixels, for what comes back from outside.
    latest: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)

    def twin(self, tensor: Any) -> Soft | None:
        """The twin of a tensor, if it has one."""
        return self.soft.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def attach(self, tensor: Tensor, soft: Soft) -> Tensor:
        """Let a twin travel with a tensor."""
        self.soft[id(tensor)] = soft
        self.alive.append(tensor)
        return tensor

    def remember(self, tensor: Tensor, how: str, *parts: Any) -> Tensor:
        """Note how a float came about."""
        self.origin[id(tensor)] = (how, parts)
        self.alive.append(tensor)
        return tensor

    def how(self, tensor: Any, wanted: str) -> tuple[Any, ...] | None:
        """What a float was made of, if it was made the wanted way."""
        found = self.origin.get(id(tensor))
        return found[1] if found is not None and found[0] == wanted else None

    def note(self, node: Any) -> None:
        """Count a relaxed operation."""
        self.relaxed[_name(node.operation), node.where] += 1

    def lose(self, node: Any) -> None:
        """Note an operation behind which the gradient ends, unless it asks for a shape only."""
        if not _name(node.operation).startswith(_SHAPE_ONLY):
            self.lost.add(id(node))

    def carries(self, value: Any) -> bool:
        """Whether a value depends on the pixels in a way that a gradient can follow."""
        return isinstance(value, Tensor) and (value.requires_grad or id(value) in self.soft)

    def from_outside(self, tensor: Tensor) -> Tensor:
        """A tensor that came from outside PyTorch. Under `guess`, if it has the shape of one that was there before, the gradient
        passes to that as through the identity (backward pass differentiable approximation, arXiv:1802.00420)."""
        like = self.latest.get(tuple(tensor.shape)) if self.guess else None
        if like is None or not tensor.is_floating_point() or tensor.dim() < 2 or tensor.shape[0] % self.batch:
            return tensor
        self.relaxed["outside", ""] += 1
        return straight(tensor, like)

    def scale(self, x: Tensor) -> Tensor:
        """The mean size of each sample's values, times the softness; broadcasts against x."""
        return self.spread(self.sampled(x), x)

    def spread(self, few: Tensor, x: Tensor) -> Tensor:
        """The same, from some of the values."""
        size = few.detach().abs().nan_to_num(0.0, 0.0, 0.0)
        if x.dim() and len(x) and len(x) % self.batch == 0:
            means = size.reshape(self.batch, -1).mean(dim=1)
            means = means.repeat_interleave(len(x) // self.batch).view(-1, *[1] * (x.dim() - 1))
        else:
            # No telling which values are whose: rounded, so that a sample hardly depends on its company.
            means = torch.exp2(size.mean().clamp_min(1e-30).log2().round())
        return torch.where(means > 1e-20, means, torch.ones_like(means)) * self.softness

    def recorded(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The values of an operation, without gradients."""
        if self.unwritten:
            return node.result
        return _functional(node)(*_detached(args), **kwargs)

    def sampled(self, x: Tensor, whole: int | None = None) -> Tensor:
        """Some values of each sample, on a regular grid, detached: enough for a mean. The dimension `whole` stays whole."""
        x = x.detach()
        if x.dim() and len(x) > self.batch and len(x) % self.batch == 0:
            x = x.unflatten(0, (self.batch, -1))  # type: ignore[no-untyped-call]
            whole = whole + 1 if whole is not None and whole > 0 else whole
        if whole is not None:
            whole %= x.dim()
        for dim in range(x.dim() - 1, 0, -1):
            step = min(x.shape[dim], -(-x.numel() // (max(len(x), 1) * _ENOUGH)))
            if dim != whole and step > 1:
                x = x[(slice(None),) * dim + (slice(None, None, step),)]
        return x

    def plain(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation as it is. Truth values and whole numbers take part with their twins."""
        twins = [self.twin(each) for each in _flat(args)]
        if not any(twins):
            return self._native(node, args, kwargs)
        with torch.no_grad():
            real_args = _detached(args)
        operation = node.operation
        writes = writes_into(operation)
        target = args[0] if writes else None
        if isinstance(target, Tensor) and target.is_floating_point():
            return self._native(node, _softened(args, self), kwargs)
        if kwargs.get("dtype") is not None and not kwargs["dtype"].is_floating_point:
            soft_kwargs = {key: value for key, value in kwargs.items() if key != "dtype"}
        else:
            soft_kwargs = kwargs
        try:
            soft_args = _softened(args, self)
            if writes:
                soft_args = (soft_args[0].clone(), *soft_args[1:])
            soft = operation(*soft_args, **soft_kwargs)
        except (RuntimeError, TypeError, IndexError, NotImplementedError):
            self.lose(node)
            return operation(*real_args, **kwargs)
        if isinstance(soft, Tensor) and node.result.is_floating_point():
            return soft if soft.dtype == node.result.dtype else soft.to(node.result.dtype)
        real = operation(*real_args, **kwargs)
        if writes:
            real = target
        for each, other in zip(_flat((real,)), _flat((soft,)), strict=False):
            if each.shape == other.shape and not each.is_floating_point():
                self.attach(each, Soft(straight(each.to(other.dtype), other)))
        return real

    def _native(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            result = node.operation(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            # No derivative, or a form that autograd refuses: the values are right, the gradient ends.
            self.lose(node)
            with torch.no_grad():
                return node.operation(*_detached(args), **kwargs)
        if any(each.requires_grad for each in _flat(args)) and not any(each.requires_grad for each in _flat((result,))):
            self.lose(node)
        return result


# Operations whose result does not depend on the values they are given.
_SHAPE_ONLY = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "new_")

# Values of a sample from which its mean size is taken.
_ENOUGH = 2048

Rule = Callable[[Context, Any, tuple[Any, ...], dict[str, Any]], Any]
RULES: dict[Any, Rule] = {}


class _Straight(torch.autograd.Function):
    """The value of the first, the gradients of both."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:  # type: ignore[override]
        return hard.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, gradient


class _Finite(torch.autograd.Function):
    """The identity, whose backward pass lets nothing through that is not a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.nan_to_num(0.0, 0.0, 0.0)


def straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, and the gradient of `soft` besides that of `hard`."""
    if not soft.requires_grad:
        return hard
    straightened: Tensor = _Straight.apply(hard, soft.expand(hard.shape) if soft.shape != hard.shape else soft)
    return straightened


def writes_into(operation: Any) -> bool:
    """Whether an operation writes into its first argument."""
    arguments = operation._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations, written `name.overload`; those that write into their first argument included."""

    def register(function: Rule) -> Rule:
        for name in names:
            packet, _, overload = name.partition(".")
            for spelling in (packet, f"{packet}_"):
                operation = getattr(getattr(_aten, spelling, None), overload, None)
                if operation is not None:
                    RULES[operation] = _writing(function) if writes_into(operation) else function
        return function

    return register


def _writing(function: Rule) -> Rule:
    def write(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target = args[0]
        twin = context.twin(target)
        before = target.clone()
        if twin is not None:
            context.attach(before, twin)
        result = function(context, node, (before, *args[1:]), kwargs)
        if result.is_floating_point() and not target.is_floating_point():
            with torch.no_grad():
                target.copy_(result)
            return context.attach(target, Soft(result)) if result.requires_grad else target
        target.copy_(result)
        after = context.twin(result)
        if after is not None:
            context.attach(target, after)
        return target

    return write


def _functional(node: Any) -> Any:
    """The operation that does the same without writing."""
    operation = node.operation
    if not writes_into(operation):
        return operation
    packet, _, overload = str(operation).removeprefix("aten.").partition(".")
    return getattr(getattr(_aten, packet.removesuffix("_")), overload)


def _number(context: Context, value: Any) -> Any:
    """A number or tensor as floats that carry a gradient, if there is one."""
    twin = context.twin(value)
    if twin is not None:
        return twin.value if twin.value is not None else value.detach().float()
    return value.float() if isinstance(value, Tensor) and not value.is_floating_point() else value


def _truth(context: Context, node: Any, real: Tensor, soft: Tensor) -> Tensor:
    """A tensor of truth values or whole numbers with its twin."""
    if not soft.requires_grad:
        return real
    context.note(node)
    return context.attach(real, Soft(straight(real.to(soft.dtype), soft)))


# Comparisons.


@rule("gt.Tensor", "gt.Scalar", "ge.Tensor", "ge.Scalar", "lt.Tensor", "lt.Scalar", "le.Tensor", "le.Scalar")
def _order(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = context.recorded(node, args, kwargs)
    if not any(context.carries(each) for each in args[:2]):
        return real
    a, b = (_number(context, each) for each in args[:2])
    gap = a - b if _name(node.operation)[0] == "g" else b - a
    return _truth(context, node, real, torch.sigmoid(gap / context.scale(gap)))


@rule("eq.Tensor", "eq.Scalar", "ne.Tensor", "ne.Scalar")
def _equal(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = context.recorded(node, args, kwargs)
    if not any(context.carries(each) for each in args[:2]):
        return real
    soft = _choice_equals(context, args[0], args[1])
    if soft is None:
        a, b = (_number(context, each) for each in args[:2])
        gap = a - b
        inside = gap.detach().nan_to_num(0.0, 0.0, 0.0)
        scaled = gap / context.scale(gap)
        if bool((inside <= 0).all()):
            soft = torch.sigmoid(scaled)  # equal to the largest: the winner's mask
        elif bool((inside >= 0).all()):
            soft = torch.sigmoid(-scaled)
        else:
            soft = 1 / (1 + scaled.square())
    return _truth(context, node, real, 1 - soft if _name(node.operation)[0] == "n" else soft)


def _choice_equals(context: Context, index: Any, places: Any) -> Tensor | None:
    """The probability that an index, drawn or chosen, points to each of these places."""
    twin = context.twin(index)
    if twin is None or twin.choice is None:
        index, places = places, index
        twin = context.twin(index)
    if twin is None or twin.choice is None or context.twin(places) is not None:
        return None
    k = twin.choice.shape[-1]
    places = torch.as_tensor(places, device=index.device).long()
    shape = torch.broadcast_shapes(index.shape, places.shape)
    choice = twin.choice
    while choice.dim() - 1 < len(shape):
        choice = choice.unsqueeze(0)
    choice, wanted = choice.expand(*shape, k), places.expand(shape)
    within = (wanted >= 0) & (wanted < k)
    return choice.gather(-1, wanted.clamp(0, k - 1).unsqueeze(-1)).squeeze(-1) * within


@rule("logical_not.default", "bitwise_not.default")
def _not(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = context.recorded(node, args, kwargs)
    if not context.carries(args[0]) or args[0].dtype != torch.bool:
        return real
    return _truth(context, node, real, 1 - _number(context, args[0]))


@rule(
    "logical_and.default",
    "bitwise_and.Tensor",
    "logical_or.default",
    "bitwise_or.Tensor",
    "logical_xor.default",
    "bitwise_xor.Tensor",
)
def _connective(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = context.recorded(node, args, kwargs)
    if not any(context.carries(each) for each in args[:2]) or real.dtype != torch.bool:
        if any(context.carries(each) for each in args[:2]):
            context.lose(node)
        return real
    a, b = (_number(context, each) for each in args[:2])
    name = _name(node.operation)
    soft = a * b if "and" in name else a + b - a * b if "_or" in name else a + b - 2 * a * b
    return _truth(context, node, real, soft)


# What is made of truth values.


@rule("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    condition, a, b = args
    twin = context.twin(condition)
    if any(context.twin(each) for each in (a, b)) and not node.result.is_floating_point():
        real = context.recorded(node, args, kwargs)
        a, b = _number(context, a), _number(context, b)
        soft = torch.where(condition, a, b)
        return _truth(context, node, real, soft)
    a, b = (_number(context, each) if context.twin(each) else each for each in (a, b))
    result = torch.where(condition, a, b)
    if twin is None or twin.value is None:
        return result
    return _mixed(context, node, result, twin.value, a, b)


def _mixed(context: Context, node: Any, result: Tensor, share: Tensor, a: Any, b: Any) -> Tensor:
    """A choice between a and b, with the gradient of how much of each is taken."""
    difference = (torch.as_tensor(a, device=result.device) - torch.as_tensor(b, device=result.device)).detach()
    finite = difference.isfinite()
    if not result.is_floating_point() or not bool(finite.any()):
        return result
    context.note(node)
    return straight(result, (share * torch.where(finite, difference, 0)).to(result.dtype))


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, mask, value = args
    twin = context.twin(mask)
    x = _number(context, x) if context.twin(x) else x
    result = x.masked_fill(mask, value)
    if twin is None or twin.value is None:
        return result
    return _mixed(context, node, result, twin.value, value, x)


@rule("index_put.default")
def _index_put(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, indices, values = args[:3]
    mask = indices[0] if len(indices) == 1 else None
    twin = context.twin(mask)
    result = _functional(node)(x, indices, values, *args[3:])
    if twin is None or twin.value is None or values.numel() != 1 or mask.shape != x.shape:
        if any(context.twin(index) for index in indices):
            context.lose(node)
        return result
    return _mixed(context, node, result, twin.value, values, x)


@rule("masked_scatter.default", "masked_select.default")
def _masked(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if context.twin(args[1]) is not None:
        context.lose(node)
    return _functional(node)(*args, **kwargs)


@rule("_to_copy.default")
def _to_copy(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, twin = args[0], context.twin(args[0])
    dtype = kwargs.get("dtype") or x.dtype
    if dtype.is_floating_point:
        if twin is None or twin.value is None:
            return node.operation(*args, **kwargs)
        return node.operation(twin.value, **kwargs)
    real = context.recorded(node, args, kwargs)
    if twin is not None:
        return context.attach(real, twin)
    if not x.requires_grad:
        return real
    if dtype == torch.bool:
        return _truth(context, node, real, torch.tanh(x.abs() / context.scale(x)))
    return _truth(context, node, real, x)


@rule("copy.default")
def _copy(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = args[:2]
    twin = context.twin(source)
    if target.is_floating_point():
        return (
            _number(context, source).to(target.dtype).expand(target.shape)
            if twin
            else source.to(target.dtype).expand(target.shape)
        )
    real = source.detach().to(target.dtype).expand(target.shape).clone()
    if twin is not None and source.shape == target.shape:
        return context.attach(real, twin)
    if source.requires_grad:
        return _truth(context, node, real, source.expand(target.shape))
    return real


# Steps: sign, rounding, clamping.


@rule("sign.default", "sgn.default")
def _sign(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = _number(context, args[0])
    if not x.requires_grad:
        return context.plain(node, args, kwargs) if not writes_into(node.operation) else x.sign()
    context.note(node)
    return straight(x.detach().sign(), torch.tanh(x / context.scale(x)))


@rule("heaviside.default")
def _heaviside(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    real = context.recorded(node, args, kwargs)
    if not x.requires_grad:
        return real
    context.note(node)
    return straight(real, torch.sigmoid(x / context.scale(x)))


@rule("round.default", "round.decimals", "floor.default", "ceil.default", "trunc.default", "fix.default")
def _round(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    real = context.recorded(node, args, kwargs)
    if not x.requires_grad:
        return real
    context.note(node)
    return straight(real, x)


@rule("frac.default")
def _frac(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # x - trunc(x), of which the second part is a step: together a constant on average.
    if args[0].requires_grad:
        context.note(node)
    return _functional(node)(args[0])


@rule("floor_divide.default", "floor_divide.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def _floor_divide(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = context.recorded(node, args, kwargs)
    if not any(context.carries(each) for each in args[:2]):
        return real
    a, b = (_number(context, each) for each in args[:2])
    if real.is_floating_point():
        context.note(node)
        return straight(real, a / b)
    return _truth(context, node, real, a / b)


# How much of the gradient passes a clamp beyond its range.
_LEAK = 0.1


@rule(
    "clamp.default",
    "clamp.Tensor",
    "clamp_min.default",
    "clamp_max.default",
    "hardtanh.default",
    "clamp_min.Tensor",
    "clamp_max.Tensor",
)
def _clamp(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not isinstance(args[0], Tensor) or not args[0].requires_grad:
        return _functional(node)(*args, **kwargs) if context.twin(args[0]) is None else context.plain(node, args, kwargs)
    x = args[0]
    result = _functional(node)(*args, **kwargs)
    beyond = (result.detach() != x.detach()).to(x.dtype)
    if not bool(beyond.any()):
        return result
    context.note(node)
    return straight(result, x * beyond * _LEAK)


@rule("threshold.default", "hardshrink.default", "softshrink.default")
def _threshold(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    result = _functional(node)(*args, **kwargs)
    name = _name(node.operation)
    # threshold(x, 0, 0) is a ReLU, which hides nothing; nor does the soft one jump.
    if not x.requires_grad or name.startswith("softshrink") or (name.startswith("threshold") and args[1] == args[2]):
        return result
    if name.startswith("threshold"):
        at, size = x - args[1], x.detach() - args[2]
    else:
        at, size = x.abs() - (args[1] if len(args) > 1 else 0.5), x.detach()
    context.note(node)
    return straight(result, torch.sigmoid(at / context.scale(at)) * size)


# Saturation.


def _tempered(context: Context, x: Tensor, dim: int | None) -> Tensor:
    """At least 1: by how much x must shrink for its softmax over `dim`, or its sigmoid, not to be flat."""
    few = context.sampled(x, whole=dim)
    if dim is not None:
        # Sampling may have split the first dimension.
        dim = dim + few.dim() - x.dim() if dim > 0 else dim
        return context.spread(few - few.mean(dim=dim, keepdim=True), x).clamp_min(1)
    return context.spread(few / 2, x).clamp_min(1)


@rule("_softmax.default", "_safe_softmax.default")
def _softmax(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dim = args[0], args[1]
    if not x.requires_grad:
        return node.operation(*args, **kwargs)
    return _softmax_of(context, node, context.recorded(node, args, kwargs), x, dim)


def _softmax_of(context: Context, node: Any, real: Tensor, x: Tensor, dim: int) -> Tensor:
    """A softmax of x over `dim`, however it was written: the value `real`, the gradient of one that is not saturated."""
    tempered = _tempered(context, x, dim)
    if bool((tempered > 1).any()):
        context.note(node)
    return straight(real.detach(), torch.softmax(_Finite.apply(x) / tempered, dim).to(real.dtype))


@rule("sigmoid.default")
def _sigmoid(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _squashed(context, node, args[0], torch.sigmoid)


@rule("tanh.default")
def _tanh(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _squashed(context, node, args[0], torch.tanh)


@rule("erf.default")
def _erf(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _squashed(context, node, args[0], torch.erf)


def _squashed(context: Context, node: Any, x: Tensor, squash: Callable[[Tensor], Tensor]) -> Tensor:
    if not x.requires_grad:
        return squash(x)
    tempered = _tempered(context, x, None)
    if not bool((tempered > 1).any()):
        return squash(x)
    context.note(node)
    return straight(squash(x.detach()), squash(x / tempered))


@rule("exp.default")
def _exp(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    whole = context.how(x, "log_softmax")
    if whole is not None and x.requires_grad:
        return _softmax_of(context, node, x.detach().exp(), whole[0], whole[1])
    return context.remember(x.exp(), "exp", x)


@rule("_log_softmax.default")
def _log_softmax(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return context.remember(node.operation(*args, **kwargs), "log_softmax", args[0], args[1])


@rule("logsumexp.default")
def _logsumexp(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dims = args[1]
    result = node.operation(*args, **kwargs)
    return context.remember(result, "logsumexp", args[0], dims[0]) if len(dims) == 1 else result


@rule("sub.Tensor")
def _sub(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = _native_or_plain(context, node, args, kwargs)
    parts = context.how(args[1], "logsumexp")
    if parts is not None and parts[0] is args[0]:
        context.remember(result, "log_softmax", args[0], parts[1])
    return result


@rule("sum.dim_IntList")
def _sum(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = _native_or_plain(context, node, args, kwargs)
    parts = context.how(args[0], "exp")
    if parts is not None and args[1] is not None and len(args[1]) == 1:
        context.remember(result, "sum of exp", parts[0], args[1][0])
    return result


@rule("add.Tensor", "add.Scalar", "clamp_min.Scalar")
def _add(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = _native_or_plain(context, node, args, kwargs)
    parts = context.how(args[0], "sum of exp")
    if parts is not None and not isinstance(args[1], Tensor):
        context.remember(result, "sum of exp", *parts)
    one = context.how(args[0], "exp")
    if one is not None and not isinstance(args[1], Tensor) and args[1] == 1:
        context.remember(result, "1 + exp", one[0])
    return result


@rule("unsqueeze.default", "view.default", "expand.default", "_unsafe_view.default", "reshape.default")
def _view(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, twin = args[0], context.twin(args[0])
    if twin is not None and twin.choice is not None:
        return _viewed_choice(context, node, args)
    result = _native_or_plain(context, node, args, kwargs)
    parts = context.how(x, "sum of exp")
    return context.remember(result, "sum of exp", *parts) if parts is not None else result


@rule("div.Tensor")
def _div(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    a, b = args[:2]
    over = context.how(b, "sum of exp")
    top = context.how(a, "exp")
    if over is not None and top is not None and over[0] is top[0] and a.requires_grad:
        return _softmax_of(context, node, context.recorded(node, args, kwargs), top[0], over[1])
    times = context.how(a, "times exp")
    if over is not None and times is not None and over[0] is times[1] and a.requires_grad:
        mask = times[2].detach() / b.detach()
        return times[0] * _softmax_of(context, node, mask, times[1], over[1])
    return _native_or_plain(context, node, args, kwargs)


@rule("mul.Tensor")
def _mul(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = _native_or_plain(context, node, args, kwargs)
    for other, each in (args[:2], args[1::-1]):
        parts = context.how(each, "exp")
        if parts is not None:
            context.remember(result, "times exp", other, parts[0], each)
    return result


@rule("reciprocal.default")
def _reciprocal(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parts = context.how(args[0], "1 + exp")
    if parts is None or not args[0].requires_grad:
        return _native_or_plain(context, node, args, kwargs)
    tempered = _tempered(context, parts[0], None)
    context.note(node)
    return straight(args[0].detach().reciprocal(), torch.sigmoid(-parts[0] / tempered))


def _native_or_plain(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not writes_into(node.operation):
        return context.plain(node, args, kwargs)
    # The wrapper for writing has made the copy: do the work without writing.
    return _functional(node)(*_softened(args, context), **kwargs)


# Choices: the largest, the k largest, draws.


def _along(context: Context, x: Tensor, dim: int) -> Tensor:
    """A soft choice among the places of `dim`, as the last dimension."""
    away = x - x.detach().mean(dim=dim, keepdim=True)
    return torch.softmax(away / context.scale(away), dim).movedim(dim, -1)


@rule("argmax.default", "argmin.default")
def _argmax(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = context.recorded(node, args, kwargs)
    x, dim = _number(context, args[0]), args[1] if len(args) > 1 else kwargs.get("dim")
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if not context.carries(args[0]):
        return real
    if dim is None:
        context.lose(node)
        return real
    choice = _along(context, x if "max" in _name(node.operation) else -x, dim)
    context.note(node)
    return context.attach(real, Soft(choice=choice.unsqueeze(dim if dim >= 0 else dim - 1) if keepdim else choice))


@rule("max.dim", "min.dim")
def _max(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dim = _number(context, args[0]), args[1]
    keepdim = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    if context.twin(args[0]) is not None:
        return context.plain(node, args, kwargs)
    values, indices = node.operation(x, *args[1:], **kwargs)
    if x.requires_grad:
        choice = _along(context, x if "max" in _name(node.operation) else -x, dim)
        context.attach(indices, Soft(choice=choice.unsqueeze(dim if dim >= 0 else dim - 1) if keepdim else choice))
    return values, indices


@rule("topk.default")
def _topk(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, k = args[0], args[1]
    dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
    largest = args[3] if len(args) > 3 else kwargs.get("largest", True)
    values, indices = node.operation(*args, **kwargs)
    if x.requires_grad and k:
        threshold = values.amin(dim, keepdim=True) if largest else values.amax(dim, keepdim=True)
        gap = x - threshold if largest else threshold - x
        context.note(node)
        context.attach(indices, Soft(members=torch.sigmoid(gap / context.scale(gap)), dim=dim % x.dim()))
    return values, indices


@rule("sort.default", "sort.stable")
def _sort(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    values, indices = node.operation(*args, **kwargs)
    x = args[0]
    if isinstance(x, Tensor) and x.requires_grad:
        # Who stands where; a mask made of part of it needs to know how many were taken.
        context.remember(indices, "sorted", x, values)
    return values, indices


@rule("slice.Tensor", "narrow.default")
def _slice(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = context.plain(node, args, kwargs)
    parts = context.how(args[0], "sorted")
    if parts is None:
        twin = context.twin(args[0])
        if twin is not None and twin.members is not None and result.shape == args[0].shape:
            context.attach(result, twin)
        return result
    x, values = parts
    dim = (args[1] if len(args) > 1 else 0) % x.dim()
    if result.shape[dim] == x.shape[dim] or not result.numel():
        return context.remember(result, "sorted", x, values) if result.numel() else result
    start = args[2] if len(args) > 2 and args[2] is not None else 0
    start = start % x.shape[dim] if start < 0 else start
    taken = values.narrow(dim, start, result.shape[dim])
    low, high = taken.amin(dim, keepdim=True), taken.amax(dim, keepdim=True)
    # Taken from either end of the order; from its middle the lower edge stands for both.
    gap = high - x if bool((low <= values.amin(dim, keepdim=True)).all()) else x - low
    context.note(node)
    return context.attach(result, Soft(members=torch.sigmoid(gap / context.scale(gap)), dim=dim))


@rule("multinomial.default")
def _multinomial(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = node.drawn.clone()
    p = args[0]
    if not p.requires_grad:
        return real
    context.note(node)
    choice = (p / p.sum(dim=-1, keepdim=True)).unsqueeze(-2).expand(*real.shape, p.shape[-1])
    return context.attach(real, Soft(choice=choice))


@rule("bernoulli.default", "bernoulli.p", "bernoulli.Tensor")
def _bernoulli(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    real = node.drawn.clone()
    p = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else args[0]
    if not p.requires_grad:
        return real
    if real.is_floating_point():
        context.note(node)
        return straight(real, p)
    return _truth(context, node, real, p)


@rule("normal.Tensor_float", "normal.Tensor_Tensor", "poisson.default")
def _normal(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return straight(node.drawn.clone(), args[0])


@rule("scatter.value", "scatter.src")
def _scatter(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dim, index, source = args
    dim = dim % x.dim() if x.dim() else 0
    twin = context.twin(index)
    if context.twin(x) is not None or context.twin(source) is not None:
        x, source = _number(context, x), _number(context, source)
    result = (
        _functional(node)(x, dim, index, source) if x.is_floating_point() or twin is None else x.scatter(dim, index, source)
    )
    if twin is None:
        return result
    share = _share(twin, index, dim, result)
    if share is None:
        context.lose(node)
        return result
    if isinstance(source, Tensor):
        # What each place would hold if it were chosen.
        size = source.detach() if source.shape[dim] == 1 else _would_be(context, result, index, source, dim)
    else:
        size = source
    if not result.is_floating_point():
        return _truth(context, node, result, share * float(size) if not isinstance(size, Tensor) else share * size)
    context.note(node)
    return straight(result, (share * size).to(result.dtype))


def _would_be(context: Context, result: Tensor, index: Tensor, source: Tensor, dim: int) -> Tensor:
    """The sizes to weigh a soft mask with: what is there, and elsewhere the mean of what was put."""
    there = result.detach()
    return torch.where(there != 0, there, source.detach().amin(dim, keepdim=True))


def _share(twin: Soft, index: Tensor, dim: int, result: Tensor) -> Tensor | None:
    """How much each place of `dim` is chosen, of the shape of the result."""
    if twin.members is not None:
        return twin.members if twin.members.shape == result.shape and twin.dim == dim else None
    if twin.choice is None or index.shape[dim] != 1:
        return None
    share = twin.choice.movedim(-1, dim).squeeze(dim + 1)
    return share if share.shape == result.shape else None


@rule("gather.default")
def _gather(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dim, index = args[:3]
    twin = context.twin(index)
    if context.twin(x) is not None:
        x = _number(context, x)
    result = node.operation(x, dim, index)
    if twin is None or twin.choice is None or index.shape[dim] != 1 or not result.is_floating_point():
        return result
    dim = dim % x.dim()
    share = twin.choice.movedim(-1, dim).squeeze(dim + 1)
    if share.shape != x.shape:
        context.lose(node)
        return result
    context.note(node)
    return straight(result, (share * x.detach()).sum(dim, keepdim=True))


@rule("embedding.default", "index.Tensor", "index_select.default")
def _lookup(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = _name(node.operation)
    table, index = args[0], args[2] if name.startswith("index_select") else args[1]
    if isinstance(index, list | tuple):
        index = index[0] if len(index) == 1 else None
    twin = context.twin(index)
    result = (
        context.plain(node, args, kwargs)
        if context.twin(table) is not None and twin is None
        else node.operation(*args, **kwargs)
    )
    if twin is None:
        return result
    if twin.choice is not None and twin.choice.shape[-1] == len(table):
        context.note(node)
        return straight(result, torch.tensordot(twin.choice, table.detach().to(twin.choice.dtype), dims=1))
    if twin.value is not None and index is not None and not index.dtype == torch.bool and len(table) > 1:
        # A table read at a rounded number: its slope there.
        slope = torch.gradient(table.detach().float(), dim=0)[0][index]
        context.note(node)
        return straight(result, slope * twin.value.view(*twin.value.shape, *[1] * (slope.dim() - twin.value.dim())))
    context.lose(node)
    return result


@rule("bucketize.Tensor", "searchsorted.Tensor")
def _bucketize(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first = _name(node.operation).startswith("bucketize")
    x, edges = args[:2] if first else (args[1], args[0])
    real = context.recorded(node, args, kwargs)
    if not x.requires_grad or edges.shape[-1] < 2:
        return real
    return _truth(context, node, real, x * (edges.shape[-1] / (edges[..., -1:] - edges[..., :1]).clamp_min(1e-12)))


# Views of indices.


def _viewed_choice(context: Context, node: Any, args: tuple[Any, ...]) -> Tensor:
    result: Tensor = node.operation(*args)
    twin = context.twin(args[0])
    assert twin is not None and twin.choice is not None
    choice = twin.choice
    k = choice.shape[-1]
    name = _name(node.operation)
    if name.startswith("expand"):
        missing = result.dim() + 1 - choice.dim()
        choice = choice.view(*[1] * missing, *choice.shape).expand(*result.shape, k)
    else:
        choice = choice.reshape(*result.shape, k)
    return context.attach(result, Soft(choice=choice))


@rule("squeeze.dim", "squeeze.default", "squeeze.dims", "clone.default")
def _reshaped(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    twin = context.twin(args[0])
    if twin is not None and twin.choice is not None:
        result = node.operation(*args, **kwargs)
        return context.attach(result, Soft(choice=twin.choice.reshape(*result.shape, twin.choice.shape[-1])))
    if twin is not None and twin.members is not None:
        return context.attach(node.operation(*args, **kwargs), twin)
    return _native_or_plain(context, node, args, kwargs)


@rule("permute.default", "transpose.int", "t.default")
def _permute(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    twin = context.twin(args[0])
    if twin is None or twin.choice is None:
        return _native_or_plain(context, node, args, kwargs)
    result = node.operation(*args, **kwargs)
    places = torch.arange(args[0].dim())
    name, dims = _name(node.operation), places.tolist()
    if name.startswith("permute"):
        dims = [dim % len(dims) for dim in args[1]]
    else:
        a, b = (args[1], args[2]) if name.startswith("transpose") else (0, -1)
        dims[a], dims[b] = dims[b], dims[a]
    return context.attach(result, Soft(choice=twin.choice.permute(*dims, -1)))


@rule("detach.default", "alias.default", "lift_fresh.default", "lift_fresh_copy.default")
def _detach(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, twin = args[0], context.twin(args[0])
    if twin is not None:
        return context.attach(_aten.alias.default(x), twin)
    if x.requires_grad and _name(node.operation).startswith("detach"):
        context.note(node)
    return _aten.alias.default(x)


@rule("split.Tensor", "split_with_sizes.default", "unbind.int", "chunk.default")
def _split(context: Context, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # As separate views: autograd refuses to write into one of several made at once.
    if context.twin(args[0]) is not None:
        return context.plain(node, args, kwargs)
    name = _name(node.operation)
    dim = kwargs.get("dim", args[-1] if len(args) > (1 if name.startswith("unbind") else 2) else 0)
    if name.startswith("unbind"):
        return [args[0].select(dim, place) for place in range(args[0].shape[dim])]
    parts, start = [], 0
    for piece in node.result:
        parts.append(args[0].narrow(dim, start, piece.shape[dim]))
        start += piece.shape[dim]
    return parts


def _name(operation: Any) -> str:
    return str(operation).removeprefix("aten.")


def _flat(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _flat(value)
    return found


def _detached(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, list | tuple):
        return type(values)(_detached(each) for each in values)
    return values


def _softened(values: Any, context: Context) -> Any:
    if isinstance(values, Tensor):
        twin = context.twin(values)
        return twin.value if twin is not None and twin.value is not None else values
    if isinstance(values, list | tuple):
        return type(values)(_softened(each, context) for each in values)
    return values
