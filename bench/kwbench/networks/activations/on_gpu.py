"""The winner-take-all activations by Triton kernels, on a GPU where Triton works; `triton_kernels` has the kernels."""

import math
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kwbench.networks.activations.fused_operation import dense, is_batched, is_unobserved

# The kernels number the values of a sample by 32 bits, of which they use 24 for ties.
_MOST_VALUES = 2**24


def can_run(x: Tensor) -> bool:
    """Whether the kernels take x: float32 or bfloat16 on a GPU on which they work, and nothing traces single operations."""
    return (
        x.device.type == "cuda"
        and x.dtype in (torch.float32, torch.bfloat16)
        and math.prod(x.shape[1:]) < _MOST_VALUES
        and is_unobserved(x)
        and not is_batched(x)
        and _work_on(x.device)
    )


def kwta(x: Tensor, k: int) -> Tensor:
    """Keep the k largest values of each sample of x (b, ...), as `kwta.kwta` does; a sample with a NaN becomes NaN."""
    kernels = _kernels()
    return _selected(x, partial(kernels.largest, k=k), kernels.pass_winners)


def lwta(x: Tensor, units: int) -> Tensor:
    """Keep the largest value of each `units` channels of x (b, c, ...), as `lwta.lwta` does; a group with a NaN becomes NaN."""
    kernels = _kernels()
    return _selected(x, partial(kernels.compete, units=units), partial(kernels.pass_to_winners, units=units))


def drawn(x: Tensor, units: int, limits: Tensor, draws: Tensor) -> Tensor:
    """Keep the first of each `units` channels of x (b, c, ...) whose limit exceeds a draw, else the last one.

    `limits` are (b, groups, units - 1, ...) and do not fall, `draws` (b, groups, 1, ...).
    """
    kernels = _kernels()
    return _selected(
        x, partial(kernels.compete, units=units, limits=limits, draws=draws), partial(kernels.pass_to_winners, units=units)
    )


def _kernels() -> ModuleType:
    from kwbench.networks.activations import triton_kernels

    return triton_kernels


@cache
def _work_on(device: torch.device) -> bool:
    """Whether the kernels compile and answer rightly on this device, by a trial."""
    try:
        x = torch.tensor([[0.5, 2.0, -1.0, 2.0, 0.25, 1.0, -3.0, 0.0]], device=device)
        results = torch.cat([_kernels().largest(x, 2)[0], _kernels().compete(x, 3)[0]])
    except Exception:  # noqa: BLE001 - no Triton, no compiler, or a GPU that it does not know
        return False
    expected = [[0.0, 2.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]]
    return results.tolist() == expected


def _selected(
    x: Tensor, select: Callable[[Tensor], tuple[Tensor, Tensor]], passing: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    out: Tensor = _Selection.apply(x if dense(x) else x.contiguous(), select, passing)[0]  # type: ignore[no-untyped-call]
    return out


class _Selection(torch.autograd.Function):
    """Saves only which values won for the backward pass."""

    @staticmethod
    def forward(
        x: Tensor, select: Callable[[Tensor], tuple[Tensor, Tensor]], passing: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the result and which values won."""
        return select(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """See torch.autograd.Function."""
        x, _, ctx.passing = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.shape = x.shape
        ctx.format = torch.contiguous_format if x.is_contiguous() else torch.channels_last

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """See torch.autograd.Function."""
        (kept,), gradient = ctx.saved_tensors, gradients[0]
        if not (torch.is_grad_enabled() or is_batched(gradient)):
            return ctx.passing(gradient.contiguous(memory_format=ctx.format), kept), None, None
        # Second derivatives and batched gradients need operations that autograd can differentiate.
        with torch.no_grad():
            ones = torch.ones(ctx.shape, device=kept.device).contiguous(memory_format=ctx.format)
            won = ctx.passing(ones, kept) > 0
        return torch.where(won, gradient, 0), None, None
