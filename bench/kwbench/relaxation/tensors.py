"""What operations write into, and how tensors share memory."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


@cache
def written(operation: Any) -> tuple[int, ...]:
    """The positions of the arguments that an operation writes into."""
    arguments = operation._schema.arguments
    return tuple(
        position
        for position, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def writes_into(operation: Any) -> bool:
    """Whether an operation writes into its first argument."""
    return 0 in written(operation)


@cache
def without_writing(operation: Any) -> Any:
    """The out-of-place form of an in-place operation; None if there is none."""
    packet, _, overload = str(operation).removeprefix("aten.").partition(".")
    return getattr(getattr(aten, packet.removesuffix("_"), None), overload, None)


def is_float(tensor: Tensor) -> bool:
    """Whether PyTorch lets a tensor carry a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def floats(tensor: Tensor) -> Tensor:
    """Return a copy of whole numbers or booleans as float32; of quantised ones, the numbers that they stand for."""
    return tensor.dequantize() if tensor.is_quantized else tensor.to(torch.float32, copy=True)


def storage(tensor: Tensor) -> int:
    """The address of the storage of a tensor, the same for all its views; 0 if it has none."""
    try:
        address: int = tensor.untyped_storage()._cdata
    except NotImplementedError:
        return 0
    return address


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors in nested arguments."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += tensors_in(*value)
        elif isinstance(value, dict) and value:
            tensors += tensors_in(*value.values())
    return tensors


def broadcast_shape(*shapes: torch.Size) -> torch.Size:
    """The shape that tensors of these shapes are broadcast to."""
    shape: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return shape


def detached(values: Any) -> Any:
    """Nested arguments without their gradients."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, list | tuple):
        return type(values)(detached(value) for value in values)
    return values


def geometry(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    """Shape, strides and offset: which values of its storage a tensor shows."""
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def is_dense(tensor: Tensor) -> bool:
    """Whether no two elements share their memory, as they do after `expand`."""
    return all(step or size == 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def fills_storage(tensor: Tensor) -> bool:
    """Whether a tensor shows as many values as its storage holds."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
