"""Run a module with a relaxed backward pass."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kwbench.relaxation import rules
from kwbench.relaxation.context import Context
from kwbench.relaxation.dispatch import CompilerSafeDispatch, Log, RelaxedDispatch, SavedTensor
from kwbench.relaxation.python_reads import PythonReads
from kwbench.relaxation.tensors import is_float, storage

__all__ = ["plain_attention", "rules", "run"]


def run(
    module: nn.Module, x: Tensor, context: Context, *, log: Log | None = None, guess: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the module's output for x (b, c, h, w), and the same differentiable in x; None if no gradient reaches x.

    Each operation runs once, on its plain values. `log` collects the operations with their modules, at a cost. `guess` passes
    the gradient of a tensor from outside to the latest tensor of the same shape.
    """
    own = {storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
    modules = [""]
    with torch.enable_grad():
        # A copy: a module may write into its input.
        root = x.clone()
    pixels = root.detach()
    kind = CompilerSafeDispatch if "torch._dynamo" in sys.modules else RelaxedDispatch
    reads = PythonReads(context.dependent, modules) if log is not None else None
    mode = kind(context, own, modules, log, guess, reads)
    if root.requires_grad:
        mode.set_twin(pixels, root)
    try:
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(plain_attention())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(mode.save, _unpack))
            if log is not None and reads is not None:
                log.reads = reads.reads
                stack.enter_context(reads)
                stack.enter_context(_naming_modules(module, modules))
            with mode:
                output = module(pixels)
        depends = isinstance(output, Tensor) and is_float(output) and storage(output) in context.dependent
        twin = mode.twin(output) if depends else None
        return output, twin if twin is not None and twin.requires_grad else None
    finally:
        # Graph, hooks and relaxed tensors refer to each other: without this, memory would wait for the garbage collector.
        mode.forget()
        context.forget()


def _unpack(saved: SavedTensor) -> Tensor:
    return saved.tensor


@contextmanager
def plain_attention() -> Iterator[None]:
    """Run transformer layers as they run in training: their fused form for inference has no gradient."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _naming_modules(module: nn.Module, names: list[str]) -> Iterator[None]:
    """Keep the name of the module at work at the end of `names`."""
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue

        def enter(_: nn.Module, __: Any, name: str = name) -> None:
            names.append(name)

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            names.pop()

        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
