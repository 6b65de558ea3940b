"""Passes recorded once and replayed, so that a GPU need not wait for Python between its kernels.

Recording uses CUDA graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). A recording works in memory of
its own, which the next replay overwrites.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A computation on tensors that stay at their addresses, and its result.
Computation = Callable[[], Tensor]

# Records computations, run in this order. Returns for each a function that replays it, and the tensor that then holds its
# result.
Recorder = Callable[[Sequence[Computation]], list[tuple[Callable[[], None], Tensor]]]


class RecordedPass:
    """A recorded pass of a deterministic function from images (b, c, h, w) to logits (b, k), for one shape and memory layout.

    Calls may follow each other, and gradients may be requested in any order and more than once: a pass whose values another
    pass has overwritten is replayed first. `gradients` says whether the backward pass is recorded too. Raises what the
    function or the recording raises.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], images: Tensor, record: Recorder, *, gradients: bool) -> None:
        self._images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_(gradients)
        self._function = function
        self._weights = torch.empty(0)
        # The number of passes, and which of them has its intermediate values in memory (-1 once its gradients were taken).
        self._passes, self._held = 0, -1
        if gradients:
            with torch.enable_grad():
                (self._replay, self._logits), (self._replay_gradient, self._gradient) = record(
                    [self._compute, self._differentiate]
                )
        else:
            with torch.no_grad():
                [(self._replay, self._logits)] = record([self._compute])

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (b, k) of x (b, c, h, w), differentiable in x if recorded with gradients."""
        if not self._images.requires_grad:
            self._run(x)
            return self._logits.clone()
        logits: Tensor = _Replayed.apply(x, self)  # type: ignore[no-untyped-call]
        return logits

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the logits of x and the number of this pass."""
        return self._run(x).clone(), self._passes

    def gradient(self, x: Tensor, weights: Tensor, number: int) -> Tensor:
        """Return the gradient in x of the sum of weights (b, k) times the logits of pass `number`, a pass over x."""
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

    def _compute(self) -> Tensor:
        self._output = self._function(self._images)
        return self._output.detach()

    def _differentiate(self) -> Tensor:
        if not len(self._weights):
            self._weights = torch.zeros_like(self._output)
        return torch.autograd.grad(self._output, self._images, self._weights)[0]


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, recording: RecordedPass) -> Tensor:
        logits, ctx.number = recording.forward(x)
        ctx.recording = recording
        ctx.save_for_backward(x)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.recording.gradient(x, weights, ctx.number), None


def find_recorder(device: torch.device) -> Recorder | None:
    """Return what records passes on this device, or None if nothing does."""
    return partial(_record_on_gpu, device) if device.type == "cuda" else None


def _record_on_gpu(device: torch.device, computations: Sequence[Computation]) -> list[tuple[Callable[[], None], Tensor]]:
    with torch.cuda.device(device):
        return _record(computations)


def _record(computations: Sequence[Computation]) -> list[tuple[Callable[[], None], Tensor]]:
    current, sync_mode = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
    side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side_stream.wait_stream(current)
    try:
        with torch.cuda.stream(side_stream):
            # The first run lets libraries initialise. The others raise at what waits for the GPU, which cannot be recorded.
            for warm_up in range(3):
                torch.cuda.set_sync_debug_mode("error" if warm_up else sync_mode)
                for compute in computations:
                    compute()
        torch.cuda.set_sync_debug_mode(sync_mode)
        current.wait_stream(side_stream)
        pool = torch.cuda.graph_pool_handle()
        recordings = []
        for compute in computations:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=side_stream, capture_error_mode="thread_local"):
                result = compute()
            recordings.append((graph.replay, result))
    finally:
        # A recording that fails leaves these as they were during it.
        torch.cuda.set_sync_debug_mode(sync_mode)
        torch.cuda.set_stream(current)
    torch.cuda.synchronize()
    return recordings
