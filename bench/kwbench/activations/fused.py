"""What the winner-take-all activations need to run as one operation: memory for its results, and its backward pass."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

# From here on NumPy asks for huge pages.
_LARGE = 2**22
# What PyTorch aligns memory to; some kernels round otherwise elsewhere.
_ALIGNMENT = 64
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


def dense(x: Tensor) -> Tensor:
    """x itself if contiguous or channels-last, otherwise a contiguous copy."""
    return x if x.is_contiguous() or _channels_last(x) else x.contiguous()


def by_sample(x: Tensor) -> Tensor:
    """The values of each sample of a dense tensor as a row (b, n), in the order in which they lie in memory."""
    return x.flatten(1) if x.is_contiguous() else x.permute(0, 2, 3, 1).flatten(1)


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


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


def where_nonzero(out: Tensor, gradient: Tensor) -> Tensor:
    """The gradient where `out`, which is dense, is not zero, and zero elsewhere."""
    keys = torch._C._dispatch_keys(gradient)
    if torch.is_grad_enabled() or any(keys.has(key) for key in _BATCHED):
        # For second derivatives, and for many gradients at once, it has to be an operation that PyTorch knows.
        passed: Tensor = torch.ops.aten.hardshrink_backward(gradient, out, 0.0)
        return passed
    passed = empty_like(out)
    torch.ops.aten.hardshrink_backward.grad_input(gradient, out, 0.0, grad_input=passed)
    return passed
