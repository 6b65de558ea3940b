"""What the rules of one pass share: scales, relaxed tensors, origins of floats, and the operations relaxed or lost."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.distributions import LARGEST, by_slope, expectation, pushed_forward, resized
from kwbench.relaxation.operation import Call, is_differentiable
from kwbench.relaxation.relaxed_tensors import RelaxedTensor, RelaxedTensors
from kwbench.relaxation.scales import Scales
from kwbench.relaxation.tensors import broadcast_shape, detached, floats, is_float, tensors_in, without_writing, writes_into

# Operations whose result does not depend on the values of their arguments, or not on those of finite numbers.
_INDEPENDENT_OF_VALUES = (
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

# What operations raise if they get floats instead of integers.
_REFUSED = (RuntimeError, TypeError, IndexError, NotImplementedError, ValueError)


@dataclass(slots=True)
class Context(Scales):
    """One pass over a batch.

    `relaxed` counts the relaxed operations by name and module. `lost` lists the operations, by name and module, at which the
    gradient ended, the latest last.
    """

    relaxed: Counter[tuple[str, str]] = field(default_factory=Counter)
    lost: list[tuple[str, str]] = field(default_factory=list)
    _tensors: RelaxedTensors = field(default_factory=RelaxedTensors)
    # How a float was computed, by its id. Some functions are written as several operations that saturate only together.
    _origins: dict[int, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)
    # Tensors known by their ids are kept alive, so that no other tensor gets the same id.
    _alive: list[Tensor] = field(default_factory=list)

    @property
    def dependent(self) -> set[int]:
        """The storages, by address, whose tensors depend on the pixels."""
        return self._tensors.dependent

    def find(self, tensor: Any) -> RelaxedTensor | None:
        """The relaxed version of a tensor of booleans or integers, if it has one."""
        return self._tensors.find(tensor)

    def attach(self, tensor: Tensor, relaxed: RelaxedTensor) -> Tensor:
        """Attach a relaxed version to a tensor, and return the tensor."""
        return self._tensors.attach(tensor, relaxed)

    def copy_notes(self, tensor: Tensor, alias: Tensor) -> None:
        """Give an alias or a copy of a tensor the same relaxed version and origin."""
        self._tensors.copy(tensor, alias)
        if id(tensor) in self._origins:
            self._origins[id(alias)] = self._origins[id(tensor)]
            self._alive.append(alias)

    def relax(self, call: Call, hard: Tensor, soft: Tensor) -> Tensor:
        """Attach to the booleans or integers `hard` a version with the gradient of `soft`, and return them."""
        if not soft.requires_grad:
            return hard
        self.count(call)
        return self.attach(hard, RelaxedTensor(straight_through(hard.to(soft.dtype), soft)))

    def set_origin(self, tensor: Tensor, kind: str, *parts: Any) -> Tensor:
        """Note that a tensor was computed by an operation of this kind from these parts, and return it."""
        self._origins[id(tensor)] = (kind, parts)
        self._alive.append(tensor)
        return tensor

    def origin(self, tensor: Any, kind: str) -> tuple[Any, ...] | None:
        """The parts that a tensor was computed from, if it was computed by an operation of this kind."""
        origin = self._origins.get(id(tensor))
        return origin[1] if origin is not None and origin[0] == kind else None

    def knows_origins(self, call: Call) -> bool:
        """Whether the origin of any argument is known."""
        return any(id(argument) in self._origins for argument in call.args if isinstance(argument, Tensor))

    def count(self, call: Call) -> None:
        """Count a relaxed operation."""
        self.relaxed[call.name, call.where] += 1

    def lose(self, call: Call) -> None:
        """Note that the gradient ends at an operation, unless its result does not depend on the values."""
        if not call.name.startswith(_INDEPENDENT_OF_VALUES):
            self.lost.append((call.name, call.where))

    def has_gradient(self, value: Any) -> bool:
        """Whether a value depends on the pixels in a way that a gradient can follow."""
        return isinstance(value, Tensor) and (value.requires_grad or self.find(value) is not None)

    def choice(self, value: Any) -> Tensor | None:
        """The soft distribution (s, k) of a tensor (s) of whole numbers, if it has one."""
        relaxed = self.find(value)
        return None if relaxed is None else relaxed.distribution()

    def choice_among(self, value: Any, k: int) -> Tensor | None:
        """The soft distribution (s, k) of whole numbers (s) below k, of rounded floats too; None if they are certain."""
        relaxed = self.find(value)
        if relaxed is None or value.dtype == torch.bool or value.numel() * k > LARGEST:
            return None
        if relaxed.value is not None:
            return by_slope(value, relaxed.value, k)
        choice = relaxed.distribution()
        return None if choice is None else resized(choice, k)

    def relax_choice(self, call: Call, hard: Tensor, choice: Tensor) -> Tensor:
        """Attach a soft distribution to the whole numbers `hard`, and return them."""
        self.count(call)
        return self.attach(hard, RelaxedTensor(choice=choice))

    def relax_mixture(self, call: Call, hard: Tensor, shares: Tensor, entries: Tensor) -> Tensor:
        """Relax `hard` (s) as one of `entries` (s, m), taken with soft shares (s, m): floats, booleans or whole numbers."""
        if is_float(hard):
            self.count(call)
            return straight_through(hard, (shares * entries.detach()).sum(-1).to(hard.dtype))
        choice = None if hard.dtype == torch.bool else pushed_forward(shares, entries)
        if choice is not None:
            return self.relax_choice(call, hard, choice)
        return self.relax(call, hard, (shares * entries.to(shares.dtype)).sum(-1))

    def as_float(self, value: Any) -> Any:
        """A number, or a tensor as floats that carry a gradient if there is one."""
        relaxed = self.find(value)
        if relaxed is not None:
            if relaxed.value is not None:
                return relaxed.value
            hard, choice = floats(value.detach()), relaxed.choice
            return hard if choice is None else straight_through(hard, expectation(choice).to(hard.dtype))
        return floats(value) if isinstance(value, Tensor) and not is_float(value) else value

    def run(self, call: Call) -> Any:
        """Run an operation unchanged. Booleans and integers take part by their relaxed versions."""
        operation, args, kwargs = call.operation, call.args, call.kwargs
        tensors = tensors_in(args)
        if not any(self.find(tensor) for tensor in tensors):
            return self.run_natively(call)
        if writes_into(operation) and not is_float(args[0]):
            return self.run_out_of_place(call, Context.run)
        if torch.Tag.pointwise in operation.tags:
            result = self.push(call)
            if result is not None:
                return result
        dtype = next((tensor.dtype for tensor in tensors if is_float(tensor)), None)
        if dtype is None:
            return self._run_on_integers(call)
        try:
            return operation(*self._with_floats(args, dtype), **kwargs)
        except _REFUSED:
            # Some integers, such as indices, cannot be replaced by floats.
            self.lose(call)
            return self.run_natively(call)

    def push(self, call: Call) -> Tensor | None:
        """Run an operation, element by element, on the soft distributions of its arguments; None if that is not possible.

        Each argument that has one takes all of its values in turn, along a dimension of its own. The other arguments keep
        theirs; if the result is a float, it also has the gradient with respect to them.
        """
        choices = {
            position: choice for position, argument in enumerate(call.args) if (choice := self.choice(argument)) is not None
        }
        if not choices or writes_into(call.operation) or any(isinstance(argument, list | tuple) for argument in call.args):
            return None
        size = broadcast_shape(*(argument.shape for argument in call.args if isinstance(argument, Tensor)))
        sizes = [choice.shape[-1] for choice in choices.values()]
        if math.prod((*size, *sizes)) > LARGEST:
            return None
        args, shares = [], torch.ones((), device=next(iter(choices.values())).device)
        for position, argument in enumerate(call.args):
            if position in choices:
                own = list(choices).index(position)
                form = [-1 if other == own else 1 for other in range(len(sizes))]
                args.append(torch.arange(sizes[own], device=argument.device).to(argument.dtype).view(form))
                shares = shares * choices[position].expand(*size, sizes[own]).reshape(*size, *form)
            else:
                constant = detached(argument)
                args.append(constant.view(*constant.shape, *[1] * len(sizes)) if isinstance(constant, Tensor) else constant)
        try:
            entries = call.operation(*args, **call.kwargs)
        except _REFUSED:
            return None
        hard = call.hard()
        entries, shares = (part.expand(*size, *sizes).flatten(len(size)) for part in (entries, shares))
        result = self.relax_mixture(call, hard, shares, entries)
        if is_float(hard) and any(self.has_gradient(other) for at, other in enumerate(call.args) if at not in choices):
            floats = [argument if at in choices else self.as_float(argument) for at, argument in enumerate(call.args)]
            exact = call.operation(*floats, **call.kwargs)
            result = result + (exact - exact.detach())
        return result

    def run_natively(self, call: Call) -> Any:
        """Run an operation with the gradient that autograd gives it."""
        try:
            if writes_into(call.operation):
                self._origins.pop(id(call.args[0]), None)
            result = call.exact()
        except (RuntimeError, NotImplementedError):
            # Autograd refuses the operation: the values are right, the gradient ends here.
            result = call.hard()
            self.lose(call)
            return result
        sources = [tensor for tensor in tensors_in(call.args) if tensor.requires_grad]
        if sources and not any(tensor.requires_grad for tensor in tensors_in(result)):
            self.lose(call)
        elif sources and not writes_into(call.operation) and not is_differentiable(call, sources, result):
            self.lose(call)
            return detached(result)
        return result

    def run_out_of_place(self, call: Call, function: Callable[["Context", Call], Any]) -> Any:
        """Run an operation that writes into its first argument as `function` of its out-of-place form."""
        operation = without_writing(call.operation)
        target = call.args[0]
        if operation is None:
            self.lose(call)
            return call.operation(target, *detached(call.args[1:]), **call.kwargs)
        before = target.clone()
        relaxed = self.find(target)
        self.copy_notes(target, before)
        if relaxed is not None and not self._tensors.has(before):
            self.attach(before, relaxed)
        result = function(self, replace(call, operation=operation, args=(before, *call.args[1:])))
        return self._overwrite(target, result)

    def forget(self) -> None:
        """Release all tensors when the pass is over."""
        self._tensors.forget()
        self._origins.clear()
        self._alive.clear()

    def _overwrite(self, target: Tensor, result: Tensor) -> Tensor:
        """Write a result, with its gradient, into the memory of the target."""
        self._origins.pop(id(target), None)
        if id(result) in self._origins:
            self._origins[id(target)] = self._origins[id(result)]
        if is_float(target):
            return target.copy_(self.as_float(result))
        relaxed = self.find(result)
        with torch.no_grad():
            target.copy_(result)
        return self._tensors.overwrite(target, relaxed)

    def _run_on_integers(self, call: Call) -> Any:
        """Run an operation on integers and booleans only, and the same operation on their relaxed versions."""
        hard = call.exact()
        options = {key: value for key, value in call.kwargs.items() if key != "dtype"}
        try:
            soft = call.operation(*self._with_floats(call.args, None), **options)
        except _REFUSED:
            self.lose(call)
            return hard
        if isinstance(hard, Tensor) and is_float(hard):
            return straight_through(hard, soft)
        followed = False
        for one, other in zip(tensors_in(hard), tensors_in(soft), strict=False):
            if other.requires_grad and one.shape == other.shape:
                self.attach(one, RelaxedTensor(straight_through(floats(one).to(other.dtype), other)))
                followed = True
        if not followed:
            self.lose(call)
        return hard

    def _with_floats(self, values: Any, dtype: torch.dtype | None) -> Any:
        """Nested arguments, tensors replaced by their relaxed versions in this type."""
        if isinstance(values, Tensor):
            relaxed = self.find(values)
            if relaxed is None or (relaxed.value is None and relaxed.choice is None):
                return values
            value: Tensor = self.as_float(values)
            return value if dtype is None else value.to(dtype)
        if isinstance(values, list | tuple):
            return type(values)(self._with_floats(value, dtype) for value in values)
        return values
