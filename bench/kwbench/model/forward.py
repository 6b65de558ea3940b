"""One forward pass of a module in a given precision, with its output checked and converted to float32 logits."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate
from kwbench.model.device import rounding_to_tf32
from kwbench.model.outputs import are_answers, refusal

# The precision of a pass: that of the module; with its batch norms folded into its convolutions; folded, in TF32 on a GPU; or
# folded, in bfloat16.
Precision = Literal["float32", "folded", "tf32", "bfloat16"]

# Runs a module on images (b, c, h, w); returns logits (b, k) and how many forward passes that took.
ForwardFunction = Callable[[nn.Module, Tensor], tuple[Tensor, int]]

# The largest logit, and the smallest scale, whose gradients, squares and sums float32 and float64 can hold.
_LARGEST, _SMALLEST = 1e15, 1e-250

# Relative to the largest logit. Sums in another order differ far less; a module that mistakes channels for pixels, far more.
_ROUNDING_TOLERANCE = 1e-3


class Forward:
    """A forward pass of a module, as the current precision and the current forward function carry it out.

    `passes` is the most forward passes that any batch took since it was last set.
    """

    def __init__(self, module: nn.Module, *, name: str, classes: int, device: torch.device) -> None:
        self.module = module
        self.device = device
        self.precision: Precision = "float32"
        self.passes = 1
        self._name, self._classes = name, classes
        self._active = module
        self._function: ForwardFunction = call_module
        self._may_be_tried = True

    def __call__(self, x: Tensor) -> Tensor:
        """Return float32 logits (b, classes) of x (b, c, h, w), a tensor that the module may overwrite.

        Raises what the module raises, and CannotEvaluate if its output is not floating-point logits (b, classes).
        """
        # A module may switch gradients off and not on again.
        with self._autocast(), torch.set_grad_enabled(torch.is_grad_enabled()):
            logits, passes = self._function(self._active, x)
        self.passes = max(self.passes, passes)
        if (reason := refusal(logits, len(x))) is not None:
            raise CannotEvaluate(f"{self._name}: {reason}")
        if logits.shape[1] != self._classes:
            raise CannotEvaluate(f"{self._name}: the model has {logits.shape[1]} classes, the data set has {self._classes}")
        return to_float32(logits)

    @property
    def function(self) -> ForwardFunction | None:
        """What carries out passes, if it may be tried on batches of other sizes and recorded; None if not."""
        return self._function if self._may_be_tried else None

    @contextmanager
    def replaced_by(self, function: ForwardFunction, *, may_be_tried: bool = False) -> Iterator[None]:
        """Carry out every pass in this block by `function(module, x)`.

        `may_be_tried`: it has no effects and no memory, and the same object stands for the same function.
        """
        before = self._function, self._may_be_tried
        self._function, self._may_be_tried = function, may_be_tried
        try:
            yield
        finally:
            self._function, self._may_be_tried = before

    def plain(self) -> AbstractContextManager[None]:
        """Call the module directly in this block."""
        return self.replaced_by(call_module, may_be_tried=True)

    @contextmanager
    def computing_in(self, precision: Precision, stand_in: nn.Module | None = None) -> Iterator[None]:
        """Compute in this precision until the block ends, by `stand_in` instead of the module if one is given."""
        before = self.precision, self._active
        # Torch's switches are global, and setting them takes time.
        switches = (precision == "tf32") != (self.precision == "tf32")
        with rounding_to_tf32(precision == "tf32") if switches else nullcontext():
            self.precision, self._active = precision, stand_in or self.module
            try:
                yield
            finally:
                self.precision, self._active = before

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()


def call_module(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Pass as the module does by itself, which no function replaces."""
    return module(x), 1


def measure_pass(function: Callable[[Tensor], Tensor], x: Tensor, *, gradients: bool) -> tuple[list[Tensor], float]:
    """Return the logits of one pass over x, with the gradients (like x) of a weighted sum of them if asked for, and the
    seconds taken.

    On a CPU the clock counts this process's own time, so that other processes do not make a pass look slower.
    """
    clock = time.perf_counter if x.is_cuda else time.process_time
    start = clock()
    with torch.set_grad_enabled(gradients):
        leaf = x.clone().requires_grad_(gradients)
        logits = function(leaf)
        results = [logits.detach()]
        if logits.requires_grad:
            weights = torch.arange(1, logits.shape[1] + 1, device=x.device).cos()
            results += torch.autograd.grad((logits * weights).sum(), leaf)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return results, clock() - start


def fill_tile(images: Tensor, tile: int) -> Tensor:
    """Repeat images (b, c, h, w) until there are `tile` of them. Some modules do not accept a batch of one."""
    return images.detach()[torch.arange(tile) % len(images)]


def to_float32(logits: Tensor) -> Tensor:
    """Return logits (b, k) in float32.

    Rows of float64 that are too large for later sums and squares, or whose largest entries would tie in float32, are shifted
    and scaled. That changes no order.
    """
    single = logits.float()
    if logits.dtype != torch.float64 or logits.shape[1] < 2:
        return single
    top, single_top = logits.detach().topk(2, dim=1).values, single.detach().topk(2, dim=1).values
    tied = (top[:, 0] > top[:, 1]) & ~(single_top[:, 0] > single_top[:, 1])
    lost = are_answers(logits) & (tied | (single.detach().abs().amax(dim=1) > _LARGEST))
    if not bool(lost.any()):
        return single
    shifted = logits - logits.detach().amax(dim=1, keepdim=True)
    scaled = shifted / shifted.detach().abs().amax(dim=1, keepdim=True).clamp_min(_SMALLEST)
    return torch.where(lost[:, None], scaled.float(), single)


def equal_up_to_rounding(one: Tensor, other: Tensor) -> bool:
    """Return whether logits (b, k) are equal up to rounding, after subtracting the mean over the classes of each row."""
    one, other = (logits - logits.mean(dim=1, keepdim=True) for logits in (one, other))
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=_ROUNDING_TOLERANCE * one.abs().max().item())
