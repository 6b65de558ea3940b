"""Running a module with relaxed gradients: each operation it carries out is carried out once, on tensors that have a gradient.

The module gets its values below autograd (a TorchDispatchMode), so that code under `no_grad` and after `detach`, the inside of
custom autograd Functions and of scripted modules are all seen. Every value has a shadow: the same memory, with the gradient of
our choice. What leaves PyTorch, a detour through numpy, comes back as a tensor from outside.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import enable_reentrant_dispatch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from kwbench.relaxation.backward import straight
from kwbench.relaxation.context import (
    RULES,
    Call,
    Context,
    aten,
    is_float,
    storage,
    tensors_in,
    writes_into,
    written,
)

# Imported for the rules that they register.
from kwbench.relaxation.rules import attention, choices, comparisons, indexing, masks, periodic, rounding, saturation, views

__all__ = ["Log", "Operation", "plain_attention", "run"]

_RULE_BOOKS = (attention, choices, comparisons, masks, indexing, saturation, rounding, views, periodic)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a pass: the memory it read and wrote, by address, and whether the gradient ended there."""

    name: str
    where: str
    read: frozenset[int]
    wrote: frozenset[int]
    lost: bool


@dataclass(slots=True)
class Log:
    """All operations of a pass, in order. `outside` are copies of the tensors that no operation made, other than parameters
    and buffers, in order of their first use, each with the module that used it."""

    operations: list[Operation] = field(default_factory=list)
    outside: list[tuple[Tensor, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Saved:
    """A tensor that the backward pass needs as it is now."""

    tensor: Tensor


class _Relaxing(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Its guard would import the compiler, which takes longer than many a pass.
        return False

    def __init__(self, context: Context, own: set[int], place: list[str], log: Log | None, guess: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self._own, self._place, self._log, self._guess = own, place, log, guess
        # By the id of a value: the address of its memory, and its shadow.
        self._shadows: dict[int, tuple[int, Tensor]] = {}
        # One shadow of each memory, of which others can be made.
        self._any_shadow: dict[int, Tensor] = {}
        # Tensors known by id or address stay alive, so that these remain theirs.
        self._alive: list[Any] = []
        self._saved: dict[int, list[_Saved]] = {}
        self._made: set[int] = set()
        # The latest shadow of each shape, for what comes back from outside.
        self._latest: dict[tuple[int, ...], Tensor] = {}

    def follow(self, value: Tensor, shadow: Tensor) -> None:
        """Take note of a value's shadow."""
        place = storage(value)
        self._shadows[id(value)] = place, shadow
        base = shadow._base if shadow._is_view() else None
        self._any_shadow[place] = shadow if base is None else base
        self.context.carried.add(place)
        self._alive.append(value)
        if self._guess:
            self._latest[tuple(shadow.shape)] = shadow

    def forget(self) -> None:
        """Let go of all tensors, when the pass is over."""
        self._shadows.clear()
        self._any_shadow.clear()
        self._alive.clear()
        self._saved.clear()
        self._latest.clear()

    def shadow_of(self, value: Tensor) -> Tensor | None:
        """A value's shadow, if it depends on the pixels."""
        place = storage(value)
        found = self._shadows.get(id(value))
        if found is not None and found[0] == place:
            return found[1]
        base = self._any_shadow.get(place)
        if base is None or base.dtype != value.dtype:
            return None
        if base.shape == value.shape and base.stride() == value.stride() and base.storage_offset() == value.storage_offset():
            shadow = base
        else:
            shadow = base.as_strided(value.shape, value.stride(), value.storage_offset())
        self._shadows[id(value)] = place, shadow
        self._alive.append(value)
        return shadow

    def keep(self, tensor: Tensor) -> _Saved:
        """Keep a tensor for the backward pass; it is copied only if it is about to be written into."""
        saved = _Saved(tensor.detach())
        self._saved.setdefault(storage(tensor), []).append(saved)
        return saved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func not in RULES:
            # Operations that are made of others come in one piece here.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        context, before = self.context, len(self.context.lost)
        values = tensors_in(args, kwargs)
        if self._log is not None or self._guess:
            self._meet(values)
        for place in written(func):
            target = args[place] if place < len(args) else kwargs.get(func._schema.arguments[place].name)
            if isinstance(target, Tensor):
                for saved in self._saved.pop(storage(target), ()):
                    saved.tensor = saved.tensor.clone()
        if func is aten._local_scalar_dense.default or not any(storage(value) in context.carried for value in values):
            result = func(*args, **kwargs)
        else:
            with enable_reentrant_dispatch(), no_dispatch(), torch.enable_grad(), _no_inference():
                result = self._relax(func, args, kwargs)
            result = (args[0] if writes_into(func) else result) if written(func) else self._values(result)
        if self._log is not None or self._guess:
            self._made.update(storage(each) for each in tensors_in(result))
            self._alive.append(result)
        if self._log is not None:
            read = frozenset(storage(value) for value in values)
            wrote = frozenset(storage(each) for each in tensors_in(result))
            lost = len(context.lost) > before
            self._log.operations.append(Operation(str(func).removeprefix("aten."), self._place[-1], read, wrote, lost))
        return result

    def _relax(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        where = self._place[-1]
        if any(place for place in written(func)):
            return self._write_elsewhere(func, args, kwargs, where)
        if writes_into(func):
            target = args[0]
            if str(func).removeprefix("aten.").partition(".")[0] in _TURNS:
                return self._turn(func, target, args[1:])
            self._target(target)
        call = Call(func, self._mapped(args), self._mapped(kwargs), where)
        rule = RULES.get(func)
        return self.context.plain(call) if rule is None else rule(self.context, call)

    def _target(self, target: Tensor) -> Tensor:
        """What to write into. From now on what shares its memory depends on the pixels too."""
        if not is_float(target):
            return target
        shadow = self.shadow_of(target)
        if shadow is None:
            self._any_shadow[storage(target)] = _whole(target.detach())
            self.context.carried.add(storage(target))
            shadow = self.shadow_of(target)
            assert shadow is not None
        return shadow

    def _turn(self, func: Any, target: Tensor, rest: tuple[Any, ...]) -> Tensor:
        """Change the form of a tensor in place, and none of its values."""
        place, shadow = storage(target), self._mapped(target)
        form = getattr(aten, str(func).removeprefix("aten.").partition(".")[0].removesuffix("_"))
        turned = form(shadow, *rest)
        if is_float(target):
            self._shadows[id(target)] = place, turned
        target.as_strided_(turned.shape, turned.stride(), turned.storage_offset())
        return target

    def _write_elsewhere(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> Any:
        """An operation that writes into other arguments than its first: running means, or `out`."""
        call = Call(func, self._mapped(args), self._mapped(kwargs), where)
        out = kwargs.get("out")
        if not isinstance(out, Tensor):
            return self._values(self.context.native(call))
        functional = getattr(aten, call.name.partition(".")[0])
        rest = {name: value for name, value in call.kwargs.items() if name != "out"}
        result = functional(*call.args, **rest)
        if out.shape != result.shape:
            self.context.lose(call)
            return func(*args, **kwargs)
        copy = Call(aten.copy_.default, (self._target(out), result), {}, where)
        RULES[aten.copy_.default](self.context, copy)
        return out

    def _mapped(self, value: Any) -> Any:
        """Nested arguments, floats by their shadows."""
        if isinstance(value, Tensor):
            if storage(value) in self.context.carried and is_float(value):
                shadow = self.shadow_of(value)
                if shadow is not None:
                    return shadow
            if value.is_inference():
                return value.clone()
            return value.detach() if value.requires_grad else value
        if isinstance(value, list | tuple):
            return type(value)(self._mapped(each) for each in value)
        if isinstance(value, dict):
            return {name: self._mapped(each) for name, each in value.items()}
        return value

    def _values(self, result: Any) -> Any:
        """What the module sees of a result."""
        if isinstance(result, Tensor):
            value: Tensor = aten.detach.default(result)
            if is_float(result) and result.requires_grad:
                self.follow(value, result)
            self.context.adopt(result, value)
            return value
        if isinstance(result, list | tuple):
            return type(result)(self._values(each) for each in result)
        return result

    def _meet(self, values: list[Tensor]) -> None:
        """Notice tensors from outside.

        Under `guess`, one that has the shape of one that was there before passes its gradient to that, as through the identity
        (backward pass differentiable approximation, arXiv:1802.00420).
        """
        for value in values:
            place = storage(value)
            if place in self.context.carried or place in self._made or place in self._own:
                continue
            self._made.add(place)
            self._alive.append(value)
            if self._log is not None:
                self._log.outside.append((value.detach().clone(), self._place[-1]))
            like = self._latest.get(tuple(value.shape))
            if not self._guess or like is None or not is_float(value) or value.dim() < 2 or len(value) % self.context.batch:
                continue
            self.context.relaxed["outside", self._place[-1]] += 1
            with enable_reentrant_dispatch(), no_dispatch(), torch.enable_grad(), _no_inference():
                shadow = straight(value.detach(), like)
            self.follow(value, shadow)


# Operations that change the form of their argument in place and none of its values.
_TURNS = ("squeeze_", "unsqueeze_", "transpose_", "t_")


class _Guarded(_Relaxing):  # type: ignore[no-untyped-call]
    """The same for modules of which parts may be compiled: those run as they are, and the compiler keeps out of here."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs)


def _no_inference() -> Any:
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _whole(tensor: Tensor) -> Tensor:
    """All of the memory behind a tensor, in its own form where it fills it."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor if tensor.numel() == size and tensor.is_contiguous() else tensor.as_strided((size,), (1,), 0)


def run(
    module: nn.Module, x: Tensor, context: Context, *, log: Log | None = None, guess: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What the module answers to x (b, c, h, w), and the same differentiable in x; None if no gradient reaches it.

    The module meets every operation as it is and carries out each of them once. `log` notes them, with their modules, at a
    cost. `guess` takes what comes from outside for an image of what was there before.
    """
    own = {storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
    place = [""]
    with torch.enable_grad():
        # A copy: a module may write into its input.
        root = x.clone()
    pixels = root.detach()
    kind = _Guarded if "torch._dynamo" in sys.modules else _Relaxing
    mode = kind(context, own, place, log, guess)
    if root.requires_grad:
        mode.follow(pixels, root)
    try:
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(plain_attention())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(mode.keep, _tensor_of))
            if log is not None:
                stack.enter_context(_placing(module, place))
            with mode:
                answer = module(pixels)
        followed = isinstance(answer, Tensor) and is_float(answer) and storage(answer) in context.carried
        shadow = mode.shadow_of(answer) if followed else None
        return answer, shadow if shadow is not None and shadow.requires_grad else None
    finally:
        # Graph, hooks and twins refer to each other: without this, memory would wait for the garbage collector.
        mode.forget()
        context.forget()


def _tensor_of(saved: _Saved) -> Tensor:
    return saved.tensor


@contextmanager
def plain_attention() -> Iterator[None]:
    """Transformers in their plain form, as they run where a gradient is wanted: the fused one has none."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _placing(module: nn.Module, place: list[str]) -> Iterator[None]:
    """Keep the name of the module at work at the end of `place`."""
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue

        def enter(_: nn.Module, __: Any, name: str = name) -> None:
            place.append(name)

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            place.pop()

        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
