"""Devices and memory: which device to use, what it can do, and the settings that keep float32 exact."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kwbench.errors import UsageError

# Parameters of mallopt, from malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def find_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is a GPU if there is one. Raises UsageError if the device cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as failure:
        reason = str(failure).splitlines()[0].split(". ")[0]  # more would list every backend of torch
        raise UsageError(f"--device {name}: not usable here ({reason}); auto takes a GPU where there is one") from None
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies matrices faster in bfloat16 than in float32.

    Torch says so of GPUs. Processors do with AMX, or with AVX-512 for bfloat16 unless Intel made them: those have two units for
    float32 and one for bfloat16, and converting costs more than it gains.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16")) or (bool(capabilities.get("avx512_bf16")) and not _is_by_intel())


@cache
def _is_by_intel() -> bool:
    try:
        processor = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        processor = platform.processor()
    return "GenuineIntel" in processor


def has_tf32(device: torch.device) -> bool:
    """Return whether the device multiplies faster in TF32, float32 with 10 bits of mantissa: NVIDIA GPUs since Ampere."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def rounding_to_tf32(rounds: bool) -> Iterator[None]:
    """Let convolutions and matrix products on a GPU round their factors to TF32, or forbid it, until the block ends."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = rounds
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def require_exact_float32() -> None:
    """Turn off what trades float32 bits for speed: TF32 and the benchmark search for convolution kernels."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def keep_freed_memory() -> None:
    """Let glibc reuse freed tensor memory, up to 32 MiB a tensor; do nothing with other C libraries.

    By default glibc returns this memory to the system, which then clears every page again: 17,000 pages in one forward and
    backward pass of 64 images through a small ResNet, an eighth of the time.
    """
    allocator = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if allocator is not None:
        for parameter, size in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, 2**25)):
            allocator(parameter, size)


def raise_if_memory_is_out(failure: Exception) -> None:
    """Raise MemoryError if `failure` is the RuntimeError that torch raises when a CPU has no memory left."""
    if isinstance(failure, RuntimeError) and "DefaultCPUAllocator" in str(failure):
        raise MemoryError(str(failure)) from failure
