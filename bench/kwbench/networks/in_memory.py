"""Modules in memory: identify a module by its code, its weights and everything it holds, and give it back unchanged."""

import hashlib
import inspect
import marshal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from kwbench.networks.loaded import Loaded, held_values, is_installed


def loaded_in_memory(module: nn.Module) -> Loaded:
    """Return the module in evaluation mode, with the SHA-256 of its code, weights, and other tensors and values it holds.

    The code is the source of each class of the module and its parts that is not installed, or its bytecode where there is no
    source. What `forward` alone reads or imports is not covered.
    """
    digest = hashlib.sha256()
    kinds = {type(part) for part in module.modules()}
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__qualname__)):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode() + _code(kind))
    module = module.eval()
    for address, value in held_values(module):
        digest.update(address.encode() + value)
    return Loaded(module, digest.hexdigest())


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore training modes, gradient flags and memory layout of a module when the block ends."""
    training = {part: part.training for part in module.modules()}
    requires_grad = {parameter: parameter.requires_grad for parameter in module.parameters()}
    contiguous = all(parameter.is_contiguous() for parameter in module.parameters())
    try:
        yield
    finally:
        if contiguous:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for part, mode in training.items():
            part.training = mode
        for parameter, wanted in requires_grad.items():
            parameter.requires_grad_(wanted)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the module's first parameter or buffer; the CPU where it has none."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _code(kind: type) -> bytes:
    """Return the source of a class; its bytecode where it has no source, nothing where it is installed."""
    try:
        file = inspect.getsourcefile(kind)
        if file is not None and is_installed(Path(file)):
            return b""
        return inspect.getsource(kind).encode()
    except (OSError, TypeError):
        methods = [method.__code__ for method in vars(kind).values() if inspect.isfunction(method)]
        return b"".join(marshal.dumps(code.replace(co_filename="", co_firstlineno=0)) for code in methods)
