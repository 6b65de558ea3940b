"""Run a winner-take-all activation as one operation, with memory of its own for the result and its own backward pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

# The size in bytes from which NumPy asks for huge pages.
_LARGE = 2**22
# PyTorch aligns memory to this many bytes; with another alignment some kernels round differently.
_ALIGNMENT = 64
# The number of values that stay in the cache of a processor.
_CACHED = 2**19
_BATCHED = tuple(torch._C._dispatch_key_parse(key) for key in ("Batched", "FuncTorchBatched"))


def can_fuse(x: Tensor) -> bool:
    """Whether an activation of x may run as one operation: floats on a CPU, and nothing traces single operations."""
    return (
        x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16) and is_unobserved(x)
    )


def is_unobserved(x: Tensor) -> bool:
    """Whether x is an ordinary tensor, and nothing traces single operations."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and _get_current_dispatch_mode() is None
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
    )


def is_batched(x: Tensor) -> bool:
    """Whether x stands for a batch of tensors, under vmap or as one of several gradients."""
    keys = torch._C._dispatch_keys(x)
    return any(keys.has(key) for key in _BATCHED)


def dense(x: Tensor) -> bool:
    """Whether x is contiguous or channels-last."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def rows_in_memory(x: Tensor) -> Tensor:
    """Return the values of each sample of a dense tensor as a row (b, n), in memory order."""
    return x.flatten(1) if x.is_contiguous() else x.permute(0, 2, 3, 1).flatten(1)


def empty_like(x: Tensor) -> Tensor:
    """Return an uninitialised tensor of the shape, strides and type of x, which is dense.

    Large tensors come from NumPy, which asks the system for huge pages. With small pages a pass over fresh memory spends most
    of its time in page faults.
    """
    size = x.numel() * x.element_size()
    if size < _LARGE:
        return torch.empty_like(x)
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    memory = torch.from_numpy(raw).untyped_storage()
    fresh: Tensor = torch.empty(0, dtype=x.dtype).set_(memory, start // x.element_size(), x.shape, x.stride())
    return fresh


def cache_sized_slices(x: Tensor) -> list[slice]:
    """Slices over the samples of x, each small enough to stay in the cache of a processor."""
    step = max(1, _CACHED * len(x) // max(x.numel(), 1))
    return [slice(start, start + step) for start in range(0, len(x), step)]


def write_winners(x: Tensor, won: Tensor, out: Tensor) -> None:
    """Write into `out` the values of x where `won` (1 or 0, of the type of x) is 1, and zero elsewhere."""
    torch.ops.aten.threshold_backward.grad_input(x, won, 0.5, grad_input=out)


def allocate_scratch(x: Tensor, number: int = 1) -> Tensor:
    """Return memory (number, n) for results of one slice of `cache_sized_slices`, to be reused for all slices."""
    return torch.empty(number, x[cache_sized_slices(x)[0]].numel() if len(x) else 0, dtype=x.dtype)


def has_zero(x: Tensor, scratch: Tensor) -> bool:
    """Whether a value of x is zero; `scratch` is of its shape and type."""
    return bool(torch.eq(x, 0, out=scratch).max() > 0)


def no_zero_winners(x: Tensor) -> list[Tensor]:
    """Return an empty list entry for `zero_winner_indices`, to concatenate others with."""
    return [torch.empty(0, x.dim(), dtype=torch.long)]


def zero_winner_indices(x: Tensor, winner: Tensor, before: int = 0) -> Tensor:
    """Return the indices (m, dimensions) of winners that are zero, in a tensor with `before` samples before those of x."""
    indices = ((x == 0) & winner).nonzero()
    indices[:, 0] += before
    return indices


def _gradient(out: Tensor, zeros: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of the winners, zero elsewhere. Winners are the non-zero values of `out`, and those at `zeros`."""
    at = tuple(zeros.unbind(1))
    if torch.is_grad_enabled() or is_batched(gradient):
        # Second derivatives and batched gradients need operations that autograd can differentiate.
        passed: Tensor = torch.ops.aten.hardshrink_backward(gradient, out, 0.0)
        return passed.index_put(at, gradient[at]) if len(zeros) else passed
    passed = empty_like(out)
    torch.ops.aten.hardshrink_backward.grad_input(gradient, out, 0.0, grad_input=passed)
    if len(zeros):
        passed[at] = gradient[at]
    return passed


class _Competition(torch.autograd.Function):
    """Saves only its result for the backward pass, as ReLU does."""

    @staticmethod
    def forward(x: Tensor, compete: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the result and the `zero_winner_indices`."""
        x = x if dense(x) else x.contiguous()
        out = empty_like(x)
        return out, compete(x, out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """See torch.autograd.Function."""
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """See torch.autograd.Function."""
        out, zeros = ctx.saved_tensors
        return _gradient(out, zeros, gradients[0]), None


def run_fused(x: Tensor, compete: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Keep some values of x and set all others to zero, as one operation with its own backward pass.

    `compete(x, out)` writes the result for x, which is dense, into `out`, which has the strides of x, and returns the
    `zero_winner_indices`.
    """
    out: Tensor = _Competition.apply(x, compete)[0]  # type: ignore[no-untyped-call]
    return out
