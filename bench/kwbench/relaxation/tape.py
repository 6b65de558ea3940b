"""Recording what a module computes, operation by operation, and computing it again with gradients of our choice.

The recorder sits below autograd (a TorchDispatchMode), so that it sees what autograd does not differentiate: code under
`no_grad` and after `detach`, the inside of custom autograd Functions and of scripted modules. What leaves PyTorch, a detour
through numpy, comes back as a tensor from outside.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kwbench.relaxation.rules import RULES, Context, writes_into

_aten = torch.ops.aten


@dataclass(slots=True)
class Node:
    """One operation: what was called with what, what it returned, in which module, and the outcome if it was random."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    where: str
    drawn: Tensor | None = None


@dataclass(slots=True)
class Tape:
    """All operations of one forward pass. `outside` are tensors that no operation made, in order of their first use, other
    than parameters and buffers; `before` holds copies of what was overwritten though it came from outside."""

    nodes: list[Node] = field(default_factory=list)
    outside: dict[int, Tensor] = field(default_factory=dict)
    before: dict[int, Tensor] = field(default_factory=dict)
    # Whether anything was written into; otherwise every recorded result still holds.
    writes: bool = False


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape, own: set[int], place: list[str]) -> None:
        super().__init__()
        self._tape, self._own, self._place = tape, own, place
        # Every tensor seen stays alive on the tape, so that its id remains its own.
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tape = self._tape
        for tensor in tensors_in(args, kwargs):
            if id(tensor) not in self._made and id(tensor) not in self._own:
                tape.outside.setdefault(id(tensor), tensor)
        written = [args[0]] if writes_into(func) and isinstance(args[0], Tensor) else []
        for tensor in written:
            if id(tensor) not in self._made and id(tensor) not in tape.before:
                tape.before[id(tensor)] = tensor.clone()
        result = func(*args, **kwargs)
        random = torch.Tag.nondeterministic_seeded in func.tags
        drawn = result.clone() if random and isinstance(result, Tensor) else None
        tape.nodes.append(Node(func, args, kwargs, result, self._place[-1], drawn))
        # A draw into fresh memory is kept as it fell.
        fresh = random and bool(written) and id(written[0]) in self._made
        tape.writes = tape.writes or (bool(written) and not fresh and not _only_turns(func))
        self._made.update(id(tensor) for tensor in tensors_in(result))
        return result


def record(module: nn.Module, x: Tensor, *, places: bool = False) -> tuple[Tensor, Tape]:
    """What the module answers to x (b, c, h, w), and how it came to it. `places` notes each operation's module, at a cost."""
    tape, place = Tape(), [""]
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers(), x)}
    with torch.no_grad(), ExitStack() as hooks:
        if places:
            hooks.enter_context(_placing(module, place))
        with _Recorder(tape, own, place):
            answer = module(x)
    return answer, tape


def replay(tape: Tape, x: Tensor, root: Tensor, answer: Tensor, context: Context) -> Tensor:
    """The recorded pass again, from `root` (b, c, h, w) in place of `x`, with relaxed gradients; the logits (b, k).

    Raises whatever an operation raises that cannot be computed again.
    """
    start = root.clone()
    again: dict[int, Tensor] = {id(x): start}
    context.latest[tuple(start.shape)] = start
    context.unwritten = not tape.writes
    for key, copy in tape.before.items():
        if key != id(x):
            again[key] = copy.clone()
    guard = torch.autograd.graph.saved_tensors_hooks(_kept, _as_it_is) if tape.writes else None
    with torch.enable_grad(), ExitStack() as stack:
        if guard is not None:
            stack.enter_context(guard)
        for node in tape.nodes:
            _step(node, again, tape, context)
    return again.get(id(answer), answer)


def _step(node: Node, again: dict[int, Tensor], tape: Tape, context: Context) -> None:
    operation = node.operation
    if context.unwritten and not context.guess and not any(id(each) in again for each in tensors_in(node.args, node.kwargs)):
        return  # Nothing here depends on the pixels: the recorded result stands.
    if operation is _aten._local_scalar_dense.default:
        return
    args = _mapped(node.args, again, tape, context)
    kwargs = {name: _mapped(value, again, tape, context) for name, value in node.kwargs.items()}
    if node.drawn is not None and operation not in RULES:
        if context.unwritten:
            return
        drawn = node.drawn.clone()
        if writes_into(operation):
            with torch.no_grad():
                args[0].copy_(drawn)
            drawn = args[0]
        again[id(node.result)] = drawn
        return
    rule = RULES.get(operation)
    result = context.plain(node, args, kwargs) if rule is None else rule(context, node, args, kwargs)
    for each in tensors_in(result):
        if each.requires_grad:
            context.latest[tuple(each.shape)] = each
    _bind(node.result, result, again)


def _bind(old: Any, new: Any, again: dict[int, Tensor]) -> None:
    if isinstance(old, Tensor):
        again[id(old)] = new
    elif isinstance(old, list | tuple):
        for each, other in zip(old, new, strict=True):
            _bind(each, other, again)


def _mapped(value: Any, again: dict[int, Tensor], tape: Tape, context: Context) -> Any:
    if isinstance(value, Tensor):
        key = id(value)
        if key not in again:
            again[key] = context.from_outside(value) if key in tape.outside else value
        return again[key]
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, again, tape, context) for each in value)
    return value


def _only_turns(operation: Any) -> bool:
    """Whether an operation changes the form of its argument and none of its values."""
    return str(operation).removeprefix("aten.").partition(".")[0] in (
        "as_strided_",
        "squeeze_",
        "unsqueeze_",
        "transpose_",
        "t_",
    )


def _kept(tensor: Tensor) -> Tensor:
    # Weights are not written into; what else is saved for the backward pass may be.
    return tensor.detach().clone() if not tensor.is_leaf or tensor.requires_grad else tensor


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def tensors_in(*values: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())


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

        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
