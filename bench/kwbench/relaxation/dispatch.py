"""Dispatch mode that runs a module's forward pass and applies a relaxation rule to every operation that has one.

A TorchDispatchMode works below autograd. It therefore also sees operations under `no_grad`, after `detach`, and inside custom
autograd Functions and scripted modules. The module itself computes with plain values, without gradients. For every value that
depends on the pixels, the mode keeps a differentiable twin: a tensor in the same memory, with the gradient that the rules
define. A tensor that no operation of the pass created is called an outside tensor, such as a result computed in numpy.
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
from kwbench.relaxation.python_reads import PythonRead, PythonReads
from kwbench.relaxation.rule import RULES
from kwbench.relaxation.tensors import aten, is_float, storage, tensors_in, writes_into, written

# Operations that change the shape or the strides of their argument in place, but not its values.
_RESHAPES_IN_PLACE = ("squeeze_", "unsqueeze_", "transpose_", "t_")


@dataclass(frozen=True, slots=True)
class LoggedOperation:
    """One operation of a pass.

    `where` is the name of the module that ran it. `read` and `wrote` are addresses of storages. `lost` says whether the
    gradient ends at this operation.
    """

    name: str
    where: str
    read: frozenset[int]
    wrote: frozenset[int]
    lost: bool


@dataclass(slots=True)
class Log:
    """All operations of a pass, and all outside tensors that it used.

    `operations` are in the order in which they ran. `outside` holds a copy of each outside tensor except parameters and
    buffers, in the order of first use, with the name of the module that used it. `reads` are the values that Python read.
    """

    operations: list[LoggedOperation] = field(default_factory=list)
    outside: list[tuple[Tensor, str]] = field(default_factory=list)
    reads: list[PythonRead] = field(default_factory=list)


@dataclass(slots=True)
class SavedTensor:
    """A tensor whose values at the time of saving are needed in the backward pass."""

    tensor: Tensor


class RelaxedDispatch(TorchDispatchMode):
    """Run each operation of a pass once, on differentiable twins, and return the plain values to the module.

    `own`: addresses of the storages of the module's parameters and buffers. `modules`: stack of the names of the running
    modules, the innermost last. `log`: records the operations, which slows the pass; None to record nothing. `guess`: whether
    the gradient of an outside tensor is passed to the latest tensor of the same shape. `reads`: records single values that
    Python reads.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # If true, PyTorch wraps `__torch_dispatch__` in a guard that imports the compiler, which takes longer than most passes.
        return False

    def __init__(
        self,
        context: Context,
        own: set[int],
        modules: list[str],
        log: Log | None,
        guess: bool,
        reads: PythonReads | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self._reads = reads
        self._own, self._modules, self._log, self._guess = own, modules, log, guess
        # Key: id of a value. Entry: address of its storage, and its twin.
        self._twins: dict[int, tuple[int, Tensor]] = {}
        # One twin for each storage address. The twins of other views of the storage are views of it.
        self._twin_by_storage: dict[int, Tensor] = {}
        # Tensors that are looked up by id or address are kept alive, so that no new tensor reuses their id or address.
        self._alive: list[Any] = []
        self._saved: dict[int, list[SavedTensor]] = {}
        # Storages that operations of the pass created, and storages of outside tensors that are already registered.
        self._known: set[int] = set()
        # The latest twin of each shape, which receives the gradients of outside tensors.
        self._latest: dict[tuple[int, ...], Tensor] = {}

    def set_twin(self, value: Tensor, twin: Tensor) -> None:
        """Set the differentiable twin of a value."""
        address = storage(value)
        self._twins[id(value)] = address, twin
        base = twin._base if twin._is_view() else None
        self._twin_by_storage[address] = twin if base is None else base
        self.context.dependent.add(address)
        self._alive.append(value)
        if self._guess:
            self._latest[tuple(twin.shape)] = twin

    def twin(self, value: Tensor) -> Tensor | None:
        """Return the differentiable twin of a value; None if the value does not depend on the pixels."""
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
        """Save a tensor for the backward pass. It is copied only when an operation is about to overwrite it."""
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
            self._register_outside(values)
        # Copy the saved tensors that this operation is about to overwrite.
        for position in written(func):
            target = args[position] if position < len(args) else kwargs.get(func._schema.arguments[position].name)
            if isinstance(target, Tensor):
                for saved in self._saved.pop(storage(target), ()):
                    saved.tensor = saved.tensor.clone()
        # `_local_scalar_dense` implements `item()`: its result is a Python number, which carries no gradient.
        if func is aten._local_scalar_dense.default or not any(storage(value) in context.dependent for value in values):
            if self._reads is not None and func is aten._local_scalar_dense.default:
                self._reads.record(args[0])
            result = func(*args, **kwargs)
        else:
            with enable_reentrant_dispatch(), no_dispatch(), torch.enable_grad(), _leave_inference_mode():
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
            return self._write_into_later_arguments(func, args, kwargs, where)
        if writes_into(func):
            target = args[0]
            if str(func).removeprefix("aten.").partition(".")[0] in _RESHAPES_IN_PLACE:
                return self._reshape_in_place(func, target, args[1:])
            self._target_twin(target)
        call = Call(func, self._differentiable(args), self._differentiable(kwargs), where)
        rule = RULES.get(func)
        return self.context.run(call) if rule is None else rule(self.context, call)

    def _target_twin(self, target: Tensor) -> Tensor:
        """Return the differentiable tensor to write into, and mark its storage as dependent on the pixels."""
        if not is_float(target):
            return target
        twin = self.twin(target)
        if twin is None:
            self._twin_by_storage[storage(target)] = _view_of_storage(target.detach())
            self.context.dependent.add(storage(target))
            twin = self.twin(target)
            assert twin is not None
        return twin

    def _reshape_in_place(self, func: Any, target: Tensor, parameters: tuple[Any, ...]) -> Tensor:
        address, twin = storage(target), self._differentiable(target)
        out_of_place = getattr(aten, str(func).removeprefix("aten.").partition(".")[0].removesuffix("_"))
        reshaped = out_of_place(twin, *parameters)
        if is_float(target):
            self._twins[id(target)] = address, reshaped
        target.as_strided_(reshaped.shape, reshaped.stride(), reshaped.storage_offset())
        return target

    def _write_into_later_arguments(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> Any:
        """Run an operation that writes into an argument other than the first, such as `running_mean` or `out`."""
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
        copy = Call(aten.copy_.default, (self._target_twin(out), result), {}, where)
        RULES[aten.copy_.default](self.context, copy)
        return out

    def _differentiable(self, value: Any) -> Any:
        """Return nested arguments with every float tensor replaced by its differentiable twin."""
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
        """Return a result without gradients, for the module, and keep the differentiable result as its twin."""
        if isinstance(result, Tensor):
            value: Tensor = aten.detach.default(result)
            if is_float(result) and result.requires_grad:
                self.set_twin(value, result)
            self.context.copy_notes(result, value)
            return value
        if isinstance(result, list | tuple):
            return type(result)(self._plain(part) for part in result)
        return result

    def _register_outside(self, values: list[Tensor]) -> None:
        """Register the outside tensors among the arguments of an operation.

        With `guess`, an outside tensor passes its gradient, as through the identity, to the latest twin of the same shape
        (backward pass differentiable approximation, arXiv:1802.00420).
        """
        for value in values:
            address = storage(value)
            if address in self.context.dependent or address in self._known or address in self._own:
                continue
            self._known.add(address)
            self._alive.append(value)
            if self._log is not None:
                self._log.outside.append((value.detach().clone(), self._modules[-1]))
            latest = self._latest.get(tuple(value.shape))
            if not self._guess or latest is None or not is_float(value) or value.dim() < 2 or len(value) % self.context.batch:
                continue
            self.context.relaxed["outside", self._modules[-1]] += 1
            with enable_reentrant_dispatch(), no_dispatch(), torch.enable_grad(), _leave_inference_mode():
                twin = straight_through(value.detach(), latest)
            self.set_twin(value, twin)


class CompilerSafeDispatch(RelaxedDispatch):  # type: ignore[no-untyped-call]
    """RelaxedDispatch for modules with compiled parts: these run unchanged, and the compiler does not trace this class."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    # PyTorch protects the method from the compiler only if the class itself defines it.
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs)


def _leave_inference_mode() -> Any:
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _view_of_storage(tensor: Tensor) -> Tensor:
    """Return a view of the whole storage of a tensor: the tensor itself if it fills the storage, else a flat view."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor if tensor.numel() == size and tensor.is_contiguous() else tensor.as_strided((size,), (1,), 0)
