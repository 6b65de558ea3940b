"""Modules in memory: identify a module by its code and everything it can reach, and give it back unchanged."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from kwbench.errors import CannotEvaluate
from kwbench.networks.loaded import Loaded
from kwbench.networks.reachable import Walk
from kwbench.networks.user_files import loaded


def loaded_in_memory(module: nn.Module) -> Loaded:
    """Return the module in evaluation mode, with the SHA-256 of its code, weights, and everything else it can reach.

    Code of installed libraries is not covered, nor what `forward` reads from files.

    Raises CannotEvaluate if the weights have no values, or were made in inference mode.
    """
    _check_weights(module)
    return loaded(module, hashlib.sha256())


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore training modes, gradient flags and memory layout of a module, and of those it uses, when the block ends."""
    modules = list({id(part): part for part in (*module.modules(), *Walk(hashing=False).follow(module).modules)}.values())
    training = [(part, part.training) for part in modules]
    requires_grad = [(parameter, parameter.requires_grad) for part in modules for parameter in part.parameters(recurse=False)]
    contiguous = all(parameter.is_contiguous() for parameter in module.parameters() if parameter.layout is torch.strided)
    try:
        yield
    finally:
        if contiguous:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for part, mode in training:
            part.training = mode
        for parameter, wanted in requires_grad:
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
