"""The dispatch mode that follows a module's forward pass and carries out its rules, one operation after the other.

The module works on plain values below autograd (a TorchDispatchMode), so that the mode also sees code under `no_grad` and
after `detach`, and the inside of custom autograd Functions and of scripted modules. Each value that depends on the pixels has
a differentiable twin: a tensor of the same memory, with the gradient that the rules give it. Values that leave PyTorch, as on
a detour through numpy, come back as tensors from outside.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from kwbench.relaxation.backward import straight_through
from kwbench.relaxation.context import Context
from kwbench.relaxation.operation import Call
from kwbench.relaxation.rule import RULES
from kwbench.relaxation.tensors import aten, is_float, storage, tensors_in, writes_into, written

# Operations that change the shape or the strides of their argument in place and none of its values.
_RESHAPES_IN_PLACE = ("squeeze_", "unsqueeze_", "transpose_", "t_")


@dataclass(frozen=True, slots=True)
class LoggedOperation:
    """One operation of a pass, in the module `where`: the storages it read and wrote, and whether the gradient ended there."""

    name: str
    where: str
    read: frozenset[int]
    wrote: frozenset[int]
    lost: bool


@dataclass(slots=True)
class Log:
    """All operations of a pass, in order.

    `outside` are copies of the tensors that no operation made, other than parameters and buffers, in order of their first use,
    each with the module that used it.
    """

    operations: list[LoggedOperation] = field(default_factory=list)
    outside: list[tuple[Tensor, str]] = field(default_factory=list)


@dataclass(slots=True)
class SavedTensor:
    """A tensor that the backward pass needs with its present values."""

    tensor: Tensor


class RelaxedDispatch(TorchDispatchMode):
    """Carries out each operation of a pass once, on differentiable tensors, and gives the module the plain values.

    `own` are the storages of the module's parameters and buffers. The last of `modules` is the name of the module at work.
    `log` collects the operations, at a cost. `guess` passes the gradient of a tensor from outside to the latest tensor of the
    same shape.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Its guard would import the compiler, which takes longer than many a pass.
        return False

    def __init__(self, context: Context, own: set[int], modules: list[str], log: Log | None, guess: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self._own, self._modules, self._log, self._guess = own, modules, log, guess
        # By the id of a value: the address of its storage, and its twin.
        self._twins: dict[int, tuple[int, Tensor]] = {}
        # One twin for each storage, of which those of other views are made.
        self._twin_by_storage: dict[int, Tensor] = {}
        # Tensors known by id or address are kept alive, so that no other tensor gets these.
        self._alive: list[Any] = []
        self._saved: dict[int, list[SavedTensor]] = {}
        # The storages that operations made, or that were noticed as from outside.
        self._known: set[int] = set()
        # The latest twin of each shape, for tensors from outside.
        self._latest: dict[tuple[int, ...], Tensor] = {}

    def set_twin(self, value: Tensor, twin: Tensor) -> None:
        """Let this be the differentiable twin of a value."""
        address = storage(value)
        self._twins[id(value)] = address, twin
        base = twin._base if twin._is_view() else None
        self._twin_by_storage[address] = twin if base is None else base
        self.context.dependent.add(address)
        self._alive.append(value)
        if self._guess:
            self._latest[tuple(twin.shape)] = twin

    def twin(self, value: Tensor) -> Tensor | None:
        """The differentiable twin of a value; None if the value does not depend on the pixels."""
        address = storage(value)
        known = self._twins.get(id(value))
        if known is not None and known[0] == address:
            return known[1]
        base = self._twin_by_storage.get(address)
        if base is None or base.dtype != value.dtype:
            return None
        if base.shape == value.shape and base.stride() == value.stride() and base.storage_offset() == value.storage_offset():
            twin = base
        else:
            twin = base.as_strided(value.shape, value.stride(), value.storage_offset())
        self._twins[id(value)] = address, twin
        self._alive.append(value)
        return twin

    def save(self, tensor: Tensor) -> SavedTensor:
        """Save a tensor for the backward pass; it is copied only if an operation is about to write into it."""
        saved = SavedTensor(tensor.detach())
        self._saved.setdefault(storage(tensor), []).append(saved)
        return saved

    def forget(self) -> None:
        """Release all tensors when the pass is over."""
        self._twins.clear()
        self._twin_by_storage.clear()
        self._alive.clear()
        self._saved.clear()
        self._latest.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func not in RULES:
            # Inference mode does not decompose composite operations before they get here.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        context, lost_before = self.context, len(self.context.lost)
        values = tensors_in(args, kwargs)
        if self._log is not None or self._guess:
            self._notice(values)
        for position in written(func):
            target = args[position] if position < len(args) else kwargs.get(func._schema.arguments[position].name)
            if isinstance(target, Tensor):
                for saved in self._saved.pop(storage(target), ()):
                    saved.tensor = saved.tensor.clone()
        if func is aten._local_scalar_dense.default or not any(storage(value) in context.dependent for value in values):
            result = func(*args, **kwargs)
        else:
            with enable_reentrant_dispatch(), no_dispatch(), torch.enable_grad(), _no_inference():
                result = self._relax(func, args, kwargs)
            result = (args[0] if writes_into(func) else result) if written(func) else self._plain(result)
        if self._log is not None or self._guess:
            self._known.update(storage(tensor) for tensor in tensors_in(result))
            self._alive.append(result)
        if self._log is not None:
            read = frozenset(storage(value) for value in values)
            wrote = frozenset(storage(tensor) for tensor in tensors_in(result))
            lost = len(context.lost) > lost_before
            name = str(func).removeprefix("aten.")
            self._log.operations.append(LoggedOperation(name, self._modules[-1], read, wrote, lost))
        return result

    def _relax(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where = self._modules[-1]
        if any(position for position in written(func)):
            return self._write_elsewhere(func, args, kwargs, where)
        if writes_into(func):
            target = args[0]
            if str(func).removeprefix("aten.").partition(".")[0] in _RESHAPES_IN_PLACE:
                return self._reshape_in_place(func, target, args[1:])
            self._target(target)
        call = Call(func, self._differentiable(args), self._differentiable(kwargs), where)
        rule = RULES.get(func)
        return self.context.run(call) if rule is None else rule(self.context, call)

    def _target(self, target: Tensor) -> Tensor:
        """The tensor to write into. From now on everything that shares its memory depends on the pixels."""
        if not is_float(target):
            return target
        twin = self.twin(target)
        if twin is None:
            self._twin_by_storage[storage(target)] = _whole(target.detach())
            self.context.dependent.add(storage(target))
            twin = self.twin(target)
            assert twin is not None
        return twin

    def _reshape_in_place(self, func: Any, target: Tensor, rest: tuple[Any, ...]) -> Tensor:
        address, twin = storage(target), self._differentiable(target)
        out_of_place = getattr(aten, str(func).removeprefix("aten.").partition(".")[0].removesuffix("_"))
        reshaped = out_of_place(twin, *rest)
        if is_float(target):
            self._twins[id(target)] = address, reshaped
        target.as_strided_(reshaped.shape, reshaped.stride(), reshaped.storage_offset())
        return target

    def _write_elsewhere(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> Any:
        """Run an operation that writes into other arguments than its first: running means, or `out`."""
        call = Call(func, self._differentiable(args), self._differentiable(kwargs), where)
        out = kwargs.get("out")
        if not isinstance(out, Tensor):
            return self._plain(self.context.run_natively(call))
        functional = getattr(aten, call.name.partition(".")[0])
        options = {name: value for name, value in call.kwargs.items() if name != "out"}
        result = functional(*call.args, **options)
        if out.shape != result.shape:
            self.context.lose(call)
            return func(*args, **kwargs)
        copy = Call(aten.copy_.default, (self._target(out), result), {}, where)
        RULES[aten.copy_.default](self.context, copy)
        return out

    def _differentiable(self, value: Any) -> Any:
        """Nested arguments, floats replaced by their differentiable twins."""
        if isinstance(value, Tensor):
            if storage(value) in self.context.dependent and is_float(value):
                twin = self.twin(value)
                if twin is not None:
                    return twin
            if value.is_inference():
                return value.clone()
            return value.detach() if value.requires_grad else value
        if isinstance(value, list | tuple):
            return type(value)(self._differentiable(part) for part in value)
        if isinstance(value, dict):
            return {name: self._differentiable(part) for name, part in value.items()}
        return value

    def _plain(self, result: Any) -> Any:
        """The plain values of a result, which the module gets."""
        if isinstance(result, Tensor):
            value: Tensor = aten.detach.default(result)
            if is_float(result) and result.requires_grad:
                self.set_twin(value, result)
            self.context.copy_notes(result, value)
            return value
        if isinstance(result, list | tuple):
            return type(result)(self._plain(part) for part in result)
        return result

    def _notice(self, values: list[Tensor]) -> None:
        """Notice tensors from outside.

        With `guess`, a tensor of the shape of an earlier one passes its gradient to it, as through the identity (backward pass
        differentiable approximation, arXiv:1802.00420).
        """
        for value in values:
            address = storage(value)
            if address in self.context.dependent or address in self._known or address in self._own:
                continue
            self._known.add(address)
            self._alive.append(value)
            if self._log is not None:
                self._log.outside.append((value.detach().clone(), self._modules[-1]))
            like = self._latest.get(tuple(value.shape))
            if not self._guess or like is None or not is_float(value) or value.dim() < 2 or len(value) % self.context.batch:
                continue
            self.context.relaxed["outside", self._modules[-1]] += 1
            with enable_reentrant_dispatch(), no_dispatch(), torch.enable_grad(), _no_inference():
                twin = straight_through(value.detach(), like)
            self.set_twin(value, twin)


class CompilerSafeDispatch(RelaxedDispatch):  # type: ignore[no-untyped-call]
    """The same for modules with compiled parts: those run as they are, and the compiler does not trace this code."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs)


def _no_inference() -> Any:
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _whole(tensor: Tensor) -> Tensor:
    """All of the storage of a tensor: the tensor itself if it fills it, else a flat view."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor if tensor.numel() == size and tensor.is_contiguous() else tensor.as_strided((size,), (1,), 0)
