"""What the rules of one pass share: scales, relaxed tensors, origins of floats, and the operations relaxed or lost."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.operation import Call, is_differentiable
from kwbench.relaxation.relaxed_tensors import RelaxedTensor, RelaxedTensors
from kwbench.relaxation.scales import Scales
from kwbench.relaxation.tensors import detached, is_float, tensors_in, without_writing, writes_into

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

    def as_float(self, value: Any) -> Any:
        """A number, or a tensor as floats that carry a gradient if there is one."""
        relaxed = self.find(value)
        if relaxed is not None:
            return relaxed.value if relaxed.value is not None else value.detach().float()
        return value.float() if isinstance(value, Tensor) and not is_float(value) else value

    def run(self, call: Call) -> Any:
        """Run an operation unchanged. Booleans and integers take part by their relaxed versions."""
        operation, args, kwargs = call.operation, call.args, call.kwargs
        tensors = tensors_in(args)
        if not any(self.find(tensor) for tensor in tensors):
            return self.run_natively(call)
        if writes_into(operation) and not is_float(args[0]):
            return self.run_out_of_place(call, Context.run)
        dtype = next((tensor.dtype for tensor in tensors if is_float(tensor)), None)
        if dtype is None:
            return self._run_on_integers(call)
        try:
            return operation(*self._with_floats(args, dtype), **kwargs)
        except _REFUSED:
            # Some integers, such as indices, cannot be replaced by floats.
            self.lose(call)
            return self.run_natively(call)

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
        for one, other in zip(tensors_in(hard), tensors_in(soft), strict=False):
            if other.requires_grad and one.shape == other.shape:
                self.attach(one, RelaxedTensor(straight_through(one.to(other.dtype), other)))
        return hard

    def _with_floats(self, values: Any, dtype: torch.dtype | None) -> Any:
        """Nested arguments, tensors replaced by their relaxed versions in this type."""
        if isinstance(values, Tensor):
            relaxed = self.find(values)
            if relaxed is None or relaxed.value is None:
                return values
            return relaxed.value if dtype is None else relaxed.value.to(dtype)
        if isinstance(values, list | tuple):
            return type(values)(self._with_floats(value, dtype) for value in values)
        return values
