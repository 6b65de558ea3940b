"""What rules know of the pass they take part in, and how they are found.

A real result of a comparison, a rounding or a draw keeps its value and gets the gradient of a smooth function beside it. Truth
values and whole numbers have no gradient in PyTorch: they travel with a float twin, `Soft`, until they meet a float again.
How soft: every scale is `softness` times a mean of the data, sample by sample, so that no backward pass is flat.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight

aten = torch.ops.aten


@dataclass(slots=True)
class Soft:
    """What travels beside a tensor of truth values or whole numbers, of shape s.

    `value` (s), float: the same numbers, with a gradient. For indices: `choice` (s + (k,)), a soft distribution over the k
    places that each may point to; or `members`, a soft mask over all places of `dim`, of which the indices name the best, with
    what stands there in `among`. `later` makes the twin when it is asked for.
    """

    value: Tensor | None = None
    choice: Tensor | None = None
    members: Tensor | None = None
    among: Tensor | None = None
    dim: int = 0
    later: "Callable[[], Soft] | None" = None


@dataclass(frozen=True, slots=True)
class Call:
    """One operation at work: what is called with what, floats with their gradients, and the module it runs in."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    where: str = ""

    @property
    def name(self) -> str:
        """Such as `gt.Scalar`."""
        return str(self.operation).removeprefix("aten.")

    def option(self, place: int, name: str, default: Any = None) -> Any:
        """An argument that may have been given by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def soft(self) -> Any:
        """What the operation itself makes of its arguments, with the gradient that autograd knows."""
        return self.operation(*self.args, **self.kwargs)

    def hard(self) -> Any:
        """The same values without gradients."""
        return self.operation(*detached(self.args), **self.kwargs)


Rule = Callable[["Context", Call], Any]
RULES: dict[Any, Rule] = {}


def rule(*names: str, unless: Callable[["Context", Call], bool] | None = None) -> Callable[[Rule], Rule]:
    """Register a rule for operations, written `name.overload`; those that write into their first argument included.

    A rule sees the form that does not write. `unless` says of a call that there is nothing to do: it then runs as it is.
    """

    def register(function: Rule) -> Rule:
        def guarded(context: Context, call: Call) -> Any:
            if unless is not None and unless(context, call):
                return context.plain(call)
            return context.rewrite(call, function) if writes_into(call.operation) else function(context, call)

        for name in names:
            packet, _, overload = name.partition(".")
            for spelling in (packet, f"{packet}_"):
                operation = getattr(getattr(aten, spelling, None), overload, None)
                if operation is not None:
                    RULES[operation] = guarded
        return function

    return register


@dataclass(slots=True)
class Context:
    """One pass: how soft, for how many samples, which tensors travel with a twin, and what was relaxed or lost."""

    softness: float
    batch: int
    relaxed: Counter[tuple[str, str]] = field(default_factory=Counter)
    # The operations, by name and module, behind which the gradient ended; the latest last.
    lost: list[tuple[str, str]] = field(default_factory=list)
    # Every storage, by address, whose tensors depend on the pixels.
    carried: set[int] = field(default_factory=set)
    _soft: dict[int, Soft] = field(default_factory=dict)
    # The tensors with twins in each storage, and the twin of a whole storage once part of it was overwritten.
    _twins: dict[int, list[tuple[Tensor, Soft]]] = field(default_factory=dict)
    _whole: dict[int, Tensor] = field(default_factory=dict)
    # How a float came about, for spellings that only together saturate: exp over sum, and the like.
    _origin: dict[int, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)
    # Tensors known by their ids stay alive, so that the ids remain theirs.
    _alive: list[Tensor] = field(default_factory=list)

    def twin(self, tensor: Any) -> Soft | None:
        """The twin of a tensor, if it has one."""
        if not isinstance(tensor, Tensor) or is_float(tensor):
            return None
        soft = self._soft.get(id(tensor))
        if soft is None:
            soft = self._alias(tensor)
        if soft is not None and soft.later is not None:
            made = soft.later()
            soft.value, soft.choice, soft.members, soft.among, soft.dim = (
                made.value,
                made.choice,
                made.members,
                made.among,
                made.dim,
            )
            soft.later = None
        return soft

    def attach(self, tensor: Tensor, soft: Soft) -> Tensor:
        """Let a twin travel with a tensor."""
        place = storage(tensor)
        if place in self._whole and soft.value is not None:
            return tensor  # a view: what it needs to know stands there
        self._soft[id(tensor)] = soft
        self._twins.setdefault(place, []).append((tensor, soft))
        self.carried.add(place)
        return tensor

    def adopt(self, tensor: Tensor, alias: Tensor) -> None:
        """Give an alias or a copy of a tensor its twin, and its origin."""
        soft = self._soft.get(id(tensor))
        if soft is not None:
            self.attach(alias, soft)
        if id(tensor) in self._origin:
            self._origin[id(alias)] = self._origin[id(tensor)]
            self._alive.append(alias)

    def _alias(self, tensor: Tensor) -> Soft | None:
        """The twin of a tensor that shares its memory with others that have one."""
        place = storage(tensor)
        if place not in self._whole:
            beside = self._twins.get(place)
            if beside is None:
                return None
            for other, soft in beside:
                if _geometry(other) == _geometry(tensor):
                    self._soft[id(tensor)] = soft
                    beside.append((tensor, soft))
                    return soft
            if not self._unite(tensor):
                return None
        return Soft(value=self._whole[place].as_strided(*_geometry(tensor)))

    def _unite(self, tensor: Tensor) -> bool:
        """One twin for all of a storage, that can be overwritten in part."""
        place = storage(tensor)
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = tensor.detach().as_strided((size,), (1,), 0).to(torch.float32, copy=True)
        for other, _ in self._twins.pop(place, []):
            soft = self.twin(other) if id(other) in self._soft else None
            self._soft.pop(id(other), None)
            self._alive.append(other)
            if soft is not None and soft.value is not None and _dense(other) and other.element_size() == tensor.element_size():
                whole.as_strided(*_geometry(other)).copy_(soft.value)
        self._whole[place] = whole
        return whole.requires_grad

    def rewrite(self, call: Call, function: Rule) -> Any:
        """Carry out an operation that writes into its first argument by one that does not."""
        operation = without_writing(call.operation)
        target = call.args[0]
        if operation is None:
            self.lose(call)
            return call.operation(target, *detached(call.args[1:]), **call.kwargs)
        before = target.clone()
        twin = self.twin(target)
        self.adopt(target, before)
        if twin is not None and id(before) not in self._soft:
            self.attach(before, twin)
        result = function(self, replace(call, operation=operation, args=(before, *call.args[1:])))
        return self.overwrite(target, result)

    def overwrite(self, target: Tensor, result: Tensor) -> Tensor:
        """Put a result, with its gradient, where the target lies."""
        self._origin.pop(id(target), None)
        if id(result) in self._origin:
            self._origin[id(target)] = self._origin[id(result)]
        if is_float(target):
            return target.copy_(self.number(result))
        twin = self.twin(result)
        with torch.no_grad():
            target.copy_(result)
        place = storage(target)
        if twin is None and place not in self.carried:
            return target
        if _whole_storage(target):
            self._whole.pop(place, None)
            for other, _ in self._twins.pop(place, []):
                self._soft.pop(id(other), None)
                self._alive.append(other)
            return target if twin is None else self.attach(target, twin)
        if place not in self._whole:
            self._unite(target)
        self.carried.add(place)
        value = target if twin is None or twin.value is None else twin.value
        self._whole[place].as_strided(*_geometry(target)).copy_(value)
        return target

    def forget(self) -> None:
        """Let go of all tensors, when the pass is over."""
        self._soft.clear()
        self._twins.clear()
        self._whole.clear()
        self._origin.clear()
        self._alive.clear()
        self.carried.clear()

    def remember(self, tensor: Tensor, how: str, *parts: Any) -> Tensor:
        """Note how a tensor came about, of which parts."""
        self._origin[id(tensor)] = (how, parts)
        self._alive.append(tensor)
        return tensor

    def how(self, tensor: Any, wanted: str) -> tuple[Any, ...] | None:
        """What a tensor was made of, if it was made the wanted way."""
        found = self._origin.get(id(tensor))
        return found[1] if found is not None and found[0] == wanted else None

    def derived(self, call: Call) -> bool:
        """Whether it is known of any argument how it came about."""
        return any(id(each) in self._origin for each in call.args if isinstance(each, Tensor))

    def note(self, call: Call) -> None:
        """Count a relaxed operation."""
        self.relaxed[call.name, call.where] += 1

    def lose(self, call: Call) -> None:
        """Note an operation behind which the gradient ends, unless it asks for a shape only or whether all is well."""
        if not call.name.startswith(_HARMLESS):
            self.lost.append((call.name, call.where))

    def carries(self, value: Any) -> bool:
        """Whether a value depends on the pixels in a way that a gradient can follow."""
        return isinstance(value, Tensor) and (value.requires_grad or self.twin(value) is not None)

    def number(self, value: Any) -> Any:
        """A number or tensor as floats that carry a gradient, if there is one."""
        twin = self.twin(value)
        if twin is not None:
            return twin.value if twin.value is not None else value.detach().float()
        return value.float() if isinstance(value, Tensor) and not is_float(value) else value

    def truth(self, call: Call, real: Tensor, soft: Tensor) -> Tensor:
        """A tensor of truth values or whole numbers with its twin."""
        if not soft.requires_grad:
            return real
        self.note(call)
        return self.attach(real, Soft(straight(real.to(soft.dtype), soft)))

    def scale(self, x: Tensor) -> Tensor:
        """The mean size of each sample's values, times the softness; broadcasts against x."""
        return self.spread(self.sampled(x), x)

    def spread(self, few: Tensor, x: Tensor) -> Tensor:
        """The same, from some of the values."""
        size = few.detach().abs().nan_to_num_(0.0, 0.0, 0.0)
        if self.by_sample(x):
            means = size.reshape(self.batch, -1).mean(dim=1)
            means = self.each_sample(means.masked_fill_(means <= _NOTHING, 1.0), x)
        else:
            # No telling which values are whose: rounded, so that a sample hardly depends on its company.
            mean = size.float().mean()
            means = torch.exp2(mean.log2().round()).masked_fill_(mean <= _NOTHING, 1.0).to(size.dtype)
        return means if self.softness == 1 else means * self.softness

    def by_sample(self, x: Tensor) -> bool:
        """Whether the first dimension of x tells the samples apart."""
        return x.dim() > 0 and len(x) > 0 and len(x) % self.batch == 0

    def each_sample(self, values: Tensor, x: Tensor) -> Tensor:
        """One value a sample (batch,), in a form that broadcasts against x."""
        times = len(x) // self.batch
        return (values if times == 1 else values.repeat_interleave(times)).view(-1, *[1] * (x.dim() - 1))

    def always(self, condition: Tensor) -> Tensor:
        """Whether a condition holds for all values of a sample; broadcasts against them."""
        if not self.by_sample(condition):
            return condition.all()
        return self.each_sample(condition.reshape(self.batch, -1).all(dim=1), condition)

    def sampled(self, x: Tensor, whole: int | None = None) -> Tensor:
        """Some values of each sample, on a regular grid, detached: enough for a mean. The dimension `whole` stays whole."""
        x = x.detach()
        whole = whole % x.dim() if whole is not None and x.dim() else None
        if self.by_sample(x) and len(x) > self.batch and whole != 0:
            x = x.unflatten(0, (self.batch, -1))  # type: ignore[no-untyped-call]
            whole = whole + 1 if whole is not None else None
        for dim in range(x.dim() - 1, 0, -1):
            step = min(x.shape[dim], -(-x.numel() // (max(len(x), 1) * _ENOUGH)))
            if dim != whole and step > 1:
                x = x[(slice(None),) * dim + (slice(None, None, step),)]
        return x

    def plain(self, call: Call) -> Any:
        """The operation as it is. Truth values and whole numbers take part with their twins."""
        operation, args, kwargs = call.operation, call.args, call.kwargs
        tensors = tensors_in(args)
        if not any(self.twin(each) for each in tensors):
            return self.native(call)
        if writes_into(operation) and not is_float(args[0]):
            return self.rewrite(call, Context.plain)
        dtype = next((each.dtype for each in tensors if is_float(each)), None)
        if dtype is None:
            return self._whole_numbers(call)
        try:
            return operation(*self._softened(args, dtype), **kwargs)
        except _REFUSED:
            # Whole numbers that have to be whole, such as places.
            self.lose(call)
            return self.native(call)

    def _whole_numbers(self, call: Call) -> Any:
        """An operation on whole numbers and truth values only, and its like on their twins."""
        real = call.soft()
        kept = {key: value for key, value in call.kwargs.items() if key != "dtype"}
        try:
            soft = call.operation(*self._softened(call.args, None), **kept)
        except _REFUSED:
            self.lose(call)
            return real
        if isinstance(real, Tensor) and is_float(real):
            return straight(real, soft)
        for each, other in zip(tensors_in(real), tensors_in(soft), strict=False):
            if other.requires_grad and each.shape == other.shape:
                self.attach(each, Soft(straight(each.to(other.dtype), other)))
        return real

    def native(self, call: Call) -> Any:
        """The operation with the gradient that autograd knows."""
        try:
            if writes_into(call.operation):
                self._origin.pop(id(call.args[0]), None)
            result = call.soft()
        except (RuntimeError, NotImplementedError):
            # A form that autograd refuses: the values are right, the gradient ends.
            result = call.hard()
            self.lose(call)
            return result
        sources = [each for each in tensors_in(call.args) if each.requires_grad]
        if sources and not any(each.requires_grad for each in tensors_in(result)):
            self.lose(call)
        elif sources and not writes_into(call.operation) and not _has_a_derivative(call, sources, result):
            self.lose(call)
            return detached(result)
        return result

    def _softened(self, values: Any, dtype: torch.dtype | None) -> Any:
        if isinstance(values, Tensor):
            twin = self.twin(values)
            if twin is None or twin.value is None:
                return values
            return twin.value if dtype is None else twin.value.to(dtype)
        if isinstance(values, list | tuple):
            return type(values)(self._softened(each, dtype) for each in values)
        return values


# Whether an operation can be differentiated in these of its tensors, by trial.
_DERIVATIVES: dict[tuple[Any, tuple[bool, ...]], bool] = {}


def _has_a_derivative(call: Call, sources: list[Tensor], result: Any) -> bool:
    """Whether the backward pass that an operation promises exists: some raise only when they are asked."""
    key = call.operation, tuple(each.requires_grad for each in tensors_in(call.args))
    if key not in _DERIVATIVES:
        results = [each for each in tensors_in(result) if each.requires_grad]
        try:
            # Of a number, because gradients of given ones import a library for symbols, which takes longer than many a pass.
            sums = [(torch.view_as_real(each) if each.is_complex() else each).sum().double() for each in results]
            torch.autograd.grad(torch.stack(sums).sum(), sources, retain_graph=True, allow_unused=True)
            _DERIVATIVES[key] = True
        except (RuntimeError, NotImplementedError):
            _DERIVATIVES[key] = False
    return _DERIVATIVES[key]


# Operations whose result does not depend on the values they are given, or not for numbers that are finite.
_HARMLESS = (
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "randint_like",
    "new_",
    "zero_",
    "zero.",
    "fill",
    "isnan",
    "isinf",
    "isfinite",
)

# Values of a sample from which its mean size is taken.
_ENOUGH = 2048

# Means below are of zeros.
_NOTHING = 1e-20

# What operations raise for floats in the place of whole numbers.
_REFUSED = (RuntimeError, TypeError, IndexError, NotImplementedError, ValueError)


@cache
def written(operation: Any) -> tuple[int, ...]:
    """The places of the arguments that an operation writes into."""
    arguments = operation._schema.arguments
    return tuple(place for place, each in enumerate(arguments) if each.alias_info is not None and each.alias_info.is_write)


def writes_into(operation: Any) -> bool:
    """Whether an operation writes into its first argument."""
    return 0 in written(operation)


@cache
def without_writing(operation: Any) -> Any:
    """The operation that does the same without writing; None if there is none."""
    packet, _, overload = str(operation).removeprefix("aten.").partition(".")
    return getattr(getattr(aten, packet.removesuffix("_"), None), overload, None)


def flat(context: Context, call: Call) -> bool:
    """For `unless`: the first argument is no float that carries a gradient."""
    return not (is_float(call.args[0]) and call.args[0].requires_grad)


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor can carry a gradient of its own."""
    return tensor.is_floating_point() or tensor.is_complex()


def storage(tensor: Tensor) -> int:
    """The address of the memory behind a tensor, the same for all views of it; 0 where it has none that can be told."""
    try:
        address: int = tensor.untyped_storage()._cdata
    except NotImplementedError:
        return 0
    return address


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors in nested arguments."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(*value)
        elif isinstance(value, dict) and value:
            found += tensors_in(*value.values())
    return found


def detached(values: Any) -> Any:
    """Nested arguments without their gradients."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, list | tuple):
        return type(values)(detached(each) for each in values)
    return values


def _geometry(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def _dense(tensor: Tensor) -> bool:
    """Whether no two places share their memory, as after `expand`."""
    return all(step or size == 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _whole_storage(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
