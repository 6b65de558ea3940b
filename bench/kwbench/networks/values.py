"""Content of tensors, arrays and random generators as bytes for a hash: the same for equal content in every process."""

import io
import random
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Numbers in names of scripted classes count the classes that a process has compiled.
_MANGLED = re.compile(rb"___torch_mangle_\d+\.?")
# Written beside a scripted module: source positions, and an identifier of the file.
_BESIDE = (".debug_pkl", "serialization_id", "version", "byteorder", ".format_version", ".storage_alignment")


def tensor_content(tensor: Tensor) -> Iterator[bytes]:
    """Yield type, shape and values of a tensor of any layout; of a quantised one also its scales and zero points."""
    yield f"{tensor.layout} {tensor.dtype} {tuple(tensor.shape) if not tensor.is_nested else 'nested'}".encode()
    if tensor.is_meta:
        return
    tensor = tensor.detach()
    if tensor.is_nested:
        for part in tensor.unbind():
            yield from tensor_content(part)
    elif tensor.is_quantized:
        yield from _quantised_content(tensor)
    elif tensor.layout is torch.sparse_coo:
        coalesced = tensor.coalesce()
        for part in (coalesced.indices(), coalesced.values()):
            yield from tensor_content(part)
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()):
            yield from tensor_content(part)
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        for part in (tensor.ccol_indices(), tensor.row_indices(), tensor.values()):
            yield from tensor_content(part)
    elif hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        yield repr(context).encode()
        for name in names:
            yield from tensor_content(getattr(tensor, name))
    elif tensor.layout is not torch.strided:
        yield from tensor_content(tensor.to_dense())
    else:
        yield _strided_bytes(tensor)


def array_content(array: np.ndarray[Any, Any]) -> Iterator[bytes | memoryview]:
    """Yield type, shape and values of an array without Python objects; of a masked one also its mask."""
    yield f"{array.dtype} {array.shape}".encode()
    if isinstance(array, np.ma.MaskedArray):
        yield np.ascontiguousarray(np.ma.getmaskarray(array)).tobytes()
        array = array.filled()
    if array.dtype.names:
        for name in array.dtype.names:  # without the padding between fields, which is arbitrary
            yield from array_content(array[name])
        return
    plain = np.ascontiguousarray(array)
    yield plain.view(np.uint8).data if plain.size and plain.dtype.kind not in "Mm" and plain.ndim else plain.tobytes()


GENERATORS = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)


def generator_state(generator: Any) -> Any:
    """Return the state of one of `GENERATORS`; None for the global ones, which kwbench seeds before every pass."""
    if isinstance(generator, torch.Generator):
        return None if generator in (torch.default_generator, *torch.cuda.default_generators) else generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator_state(generator.bit_generator)
    if isinstance(generator, np.random.BitGenerator):
        return None if generator is _global_numpy()._bit_generator else generator.state
    if isinstance(generator, np.random.RandomState):
        return None if generator is _global_numpy() else generator.get_state(legacy=False)
    if generator is random.getstate.__self__ or isinstance(generator, random.SystemRandom):  # type: ignore[attr-defined]
        return None
    return generator.getstate()


def script_content(module: torch.jit.ScriptModule) -> Iterator[bytes]:
    """Yield what `torch.jit.save` writes of a scripted or traced module: code, constants, weights and attributes."""
    file = io.BytesIO()
    torch.jit.save(module, file)
    with zipfile.ZipFile(file) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename):
            name = member.filename.partition("/")[2]
            if not name.endswith(_BESIDE):
                content = archive.read(member)
                yield _MANGLED.sub(b"", name.encode())
                yield content if name.startswith(("data/", "constants/")) else _code_of(content)


def _code_of(scripted: bytes) -> bytes:
    """Return scripted code with its constants in order; they come in that of a set, which changes from process to process."""
    lines = _MANGLED.sub(b"", scripted).splitlines()
    constants = sorted(line for line in lines if b" : Final[" in line)
    return b"\n".join([*constants, *(line for line in lines if b" : Final[" not in line)])


def _quantised_content(tensor: Tensor) -> Iterator[bytes]:
    yield str(tensor.qscheme()).encode()
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        yield repr((tensor.q_scale(), tensor.q_zero_point())).encode()
    else:
        yield str(tensor.q_per_channel_axis()).encode()
        for part in (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()):
            yield from tensor_content(part)
    yield from tensor_content(tensor.int_repr())


def _strided_bytes(tensor: Tensor) -> bytes:
    values = tensor.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    content: Any = values.view(torch.uint8).numpy().data
    return content  # type: ignore[no-any-return]


def _global_numpy() -> Any:
    return np.random.get_state.__self__  # type: ignore[attr-defined]
