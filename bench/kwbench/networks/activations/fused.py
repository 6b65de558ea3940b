"""What the winner-take-all activations need to run as one operation: memory for its results, and its backward pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

# From here on NumPy asks for huge pages.
_LARGE = 2**22
# What PyTorch aligns memory to; some kernels round otherwise elsewhere.
_ALIGNMENT = 64
# Values.
_CACHED = 2**19
_BATCHED = tuple(torch._C._dispatch_key_parse(key) for key in ("Batched", "FuncTorchBatched"))


def fusible(x: Tensor) -> bool:
    """Whether an activation of x may run outside PyTorch: floats on the CPU, and nobody who follows its operations."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        and type(x) in (Tensor, nn.Parameter)
        and _get_current_dispatch_mode() is None
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
    )


def dense(x: Tensor) -> bool:
    """Whether x is contiguous or channels-last."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def by_sample(x: Tensor) -> Tensor:
    """The values of each sample of a dense tensor as a row (b, n), in the order in which they lie in memory."""
    return x.flatten(1) if x.is_contiguous() else x.permute(0, 2, 3, 1).flatten(1)


def empty_like(x: Tensor) -> Tensor:
    """A tensor of the shape, strides and type of x, which is dense, with any values.

    Large ones come from NumPy, which asks the system for huge pages: a pass over fresh memory in small ones mostly waits for
    page faults.
    """
    size = x.numel() * x.element_size()
    if size < _LARGE:
        return torch.empty_like(x)
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    memory = torch.from_numpy(raw).untyped_storage()
    fresh: Tensor = torch.empty(0, dtype=x.dtype).set_(memory, start // x.element_size(), x.shape, x.stride())
    return fresh


def at_a_time(x: Tensor) -> list[slice]:
    """So many samples of x at a time that they stay in the processor's cache."""
    step = max(1, _CACHED * len(x) // max(x.numel(), 1))
    return [slice(start, start + step) for start in range(0, len(x), step)]


def pass_on(x: Tensor, won: Tensor, out: Tensor) -> None:
    """Write into `out` the values of x where `won`, of its type, is 1, and zero where it is 0."""
    torch.ops.aten.threshold_backward.grad_input(x, won, 0.5, grad_input=out)


def scratch_for(x: Tensor, number: int = 1) -> Tensor:
    """Memory (number, n) for results as large as what comes `at_a_time`; asked for anew each time, it would be fresh again."""
    return torch.empty(number, x[at_a_time(x)[0]].numel() if len(x) else 0, dtype=x.dtype)


def has_zero(x: Tensor, scratch: Tensor) -> bool:
    """Whether a value of x is zero; `scratch` is of its shape and type."""
    return bool(torch.eq(x, 0, out=scratch).max() > 0)


def no_zeros(x: Tensor) -> list[Tensor]:
    """The `zero_winners` of nothing, to begin with."""
    return [torch.empty(0, x.dim(), dtype=torch.long)]


def zero_winners(x: Tensor, winner: Tensor, before: int = 0) -> Tensor:
    """Where a winner is zero, as indices (m, dimensions) into a tensor in which `before` samples come before those of x."""
    places = ((x == 0) & winner).nonzero()
    places[:, 0] += before
    return places


def _gradient(out: Tensor, zeros: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the winners, zero elsewhere: of what is not zero in `out`, which is dense, and of what `zeros` names."""
    at = tuple(zeros.unbind(1))
    keys = torch._C._dispatch_keys(gradient)
    if torch.is_grad_enabled() or any(keys.has(key) for key in _BATCHED):
        # For second derivatives, and for many gradients at once, it has to be operations that PyTorch knows.
        passed: Tensor = torch.ops.aten.hardshrink_backward(gradient, out, 0.0)
        return passed.index_put(at, gradient[at]) if len(zeros) else passed
    passed = empty_like(out)
    torch.ops.aten.hardshrink_backward.grad_input(gradient, out, 0.0, grad_input=passed)
    if len(zeros):
        passed[at] = gradient[at]
    return passed


class _Competition(torch.autograd.Function):
    """Keeps its result for the backward pass, as ReLU does, and nothing of its own."""

    @staticmethod
    def forward(x: Tensor, compete: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The result and the `zero_winners`."""
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


def run(x: Tensor, compete: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Let some values of x pass and make all others zero, as one operation with a backward pass of its own.

    `compete(x, out)` writes the result for x, which is dense, into `out`, which lies in memory as x does, and tells the
    `zero_winners`.
    """
    out: Tensor = _Competition.apply(x, compete)[0]  # type: ignore[no-untyped-call]
    return out
