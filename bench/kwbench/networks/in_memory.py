"""Modules in memory: identify a module by its code, its weights and everything it holds, and give it back unchanged."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from kwbench.errors import CannotEvaluate
from kwbench.networks.code import class_code, member_code
from kwbench.networks.loaded import Loaded, held_values


def loaded_in_memory(module: nn.Module) -> Loaded:
    """Return the module in evaluation mode, with the SHA-256 of its code, weights, and other tensors and values it holds.

    The code is that of the classes of the module and its parts, their base classes, and functions in attributes, unless
    installed: the source of a class, or its bytecode where it has no source. Other code that `forward` calls is not covered.

    Raises CannotEvaluate if the weights have no values, or were made in inference mode.
    """
    _check_weights(module)
    digest = hashlib.sha256()
    kinds = {type(part) for part in module.modules()}
    bases = {base for kind in kinds for base in kind.__mro__}
    for kind in sorted(kinds | bases, key=lambda kind: (kind.__module__, kind.__qualname__)):
        code = class_code(kind)
        if code or kind in kinds:
            digest.update(f"{kind.__module__}.{kind.__qualname__}".encode() + code)
    module = module.eval()
    for address, value in held_values(module):
        digest.update(address.encode() + value)
    for address, part in module.named_modules():
        for name, value in sorted(vars(part).items()):
            digest.update(b"".join(f"{address}.{name}".encode() + code for code in member_code(value)))
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
            if parameter.requires_grad != wanted:  # a tensor made in inference mode refuses even the value it has
                parameter.requires_grad_(wanted)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the module's first parameter or buffer; the CPU where it has none."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _check_weights(module: nn.Module) -> None:
    tensors = list(chain(module.parameters(), module.buffers()))
    if any(tensor.is_meta for tensor in tensors):
        raise CannotEvaluate(f"{type(module).__name__}: weights on the device meta have no values; load the weights first")
    if any(tensor.is_inference() for tensor in tensors):
        raise CannotEvaluate(
            f"{type(module).__name__}: the weights were made under torch.inference_mode and cannot be differentiated; "
            "make and load the module outside of it"
        )
