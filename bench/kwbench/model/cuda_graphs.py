"""Passes recorded once and replayed: a GPU then need not wait for Python between its kernels.

As CUDA graphs do it (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). A recording works in memory of its own,
which the next replay overwrites.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Work on tensors that stay where they are, and what it gives.
Work = Callable[[], Tensor]

# From works, done in this order: for each what does it again, and the tensor in which it then leaves what it gives.
Record = Callable[[Sequence[Work]], list[tuple[Callable[[], None], Tensor]]]


class Recorded:
    """A pass of a deterministic function from images (b, c, h, w) to logits (b, k), for one shape and layout of images, with
    gradients or without.

    Calls may follow each other and their gradients be asked for in any order, and more than once: whatever another pass has
    overwritten is replayed first. Raises what the function or the recording raises.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], images: Tensor, record: Record, *, gradients: bool) -> None:
        self._images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_(gradients)
        self._function = function
        self._weights = torch.empty(0)
        # The pass whose inner values are in the memory, by its number; none once its gradients were taken.
        self._passes, self._held = 0, -1
        if gradients:
            with torch.enable_grad():
                (self._replay, self._logits), (self._replay_gradient, self._gradient) = record(
                    [self._pass, self._differentiate]
                )
        else:
            with torch.no_grad():
                [(self._replay, self._logits)] = record([self._pass])

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (b, k) of x (b, c, h, w), differentiable in x if recorded so."""
        if not self._images.requires_grad:
            self._run(x)
            return self._logits.clone()
        logits: Tensor = _Replayed.apply(x, self)  # type: ignore[no-untyped-call]
        return logits

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Logits of x, and the number of this pass."""
        return self._run(x).clone(), self._passes

    def gradient(self, x: Tensor, weights: Tensor, number: int) -> Tensor:
        """The gradient in x of the sum of the logits of that pass times weights (b, k)."""
        if number != self._held:
            self._run(x)
        self._held = -1
        self._weights.copy_(weights)
        self._replay_gradient()
        return self._gradient.clone()

    def _run(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self._images.copy_(x)
        self._replay()
        self._passes += 1
        self._held = self._passes
        return self._logits

    def _pass(self) -> Tensor:
        self._kept = self._function(self._images)
        return self._kept.detach()

    def _differentiate(self) -> Tensor:
        if not len(self._weights):
            self._weights = torch.zeros_like(self._kept)
        return torch.autograd.grad(self._kept, self._images, self._weights)[0]


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, recorded: Recorded) -> Tensor:
        logits, ctx.number = recorded.forward(x)
        ctx.recorded = recorded
        ctx.save_for_backward(x)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.recorded.gradient(x, weights, ctx.number), None


def recorder(device: torch.device) -> Record | None:
    """What records on this device; None where nothing does."""
    return partial(_record_on_gpu, device) if device.type == "cuda" else None


def _record_on_gpu(device: torch.device, works: Sequence[Work]) -> list[tuple[Callable[[], None], Tensor]]:
    with torch.cuda.device(device):
        return _recorded(works)


def _recorded(works: Sequence[Work]) -> list[tuple[Callable[[], None], Tensor]]:
    present, mode = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(present)
    try:
        with torch.cuda.stream(aside):
            # Libraries prepare themselves at first; and what waits for the GPU cannot be recorded, and is better found out now.
            for done in range(3):
                torch.cuda.set_sync_debug_mode("error" if done else mode)
                for work in works:
                    work()
        torch.cuda.set_sync_debug_mode(mode)
        present.wait_stream(aside)
        pool = torch.cuda.graph_pool_handle()
        found = []
        for work in works:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                left = work()
            found.append((graph.replay, left))
    finally:
        # A recording that fails leaves these as they were during it.
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.set_stream(present)
    torch.cuda.synchronize()
    return found
