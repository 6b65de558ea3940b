"""Faster precisions for searches: a stand-in with folded batch norms, in float32, TF32 or bfloat16.

Only float32 results count.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kwbench.model.bn_folding import fold_batch_norms
from kwbench.model.device import has_bfloat16, has_tf32, raise_if_memory_is_out
from kwbench.model.forward import Forward, Precision, equal_up_to_rounding, measure_pass
from kwbench.model.memory_layout import MemoryLayout

# The share of predictions that TF32 or bfloat16 must preserve for a search in it to be trusted.
_SAME_PREDICTIONS = 0.9

# By how much the gradient of a stand-in may differ, relative to the norm of the module's gradient.
_GRADIENT_TOLERANCE = 0.1


def precisions_on(device: torch.device) -> list[Precision]:
    """Return the precisions that a search may gain from on this device, from the exact one to the coarsest."""
    rounded: tuple[tuple[Precision, bool], ...] = (("tf32", has_tf32(device)), ("bfloat16", has_bfloat16(device)))
    return ["float32", "folded", *(precision for precision, has in rounded if has)]


class SearchPrecision:
    """The precisions in which a search may compute, and the stand-in for the module that they use.

    The stand-in is built on first use, by a trial on `probe` (b, c, h, w). Without a probe there is none.
    """

    def __init__(self, forward: Forward, layout: MemoryLayout, probe: Tensor | None) -> None:
        self._forward, self._layout, self._probe = forward, layout, probe
        # The module itself if nothing can stand in for it; None before the trial.
        self._stand_in: nn.Module | None = None

    def effective(self, precision: Precision) -> Precision:
        """The precision that a search in `precision` computes in: folded where there is no TF32, and float32 where there are no
        batch norms to fold."""
        if precision == "tf32" and not has_tf32(self._forward.device):
            precision = "folded"
        return "float32" if precision == "folded" and self._find_stand_in() is self._forward.module else precision

    @contextmanager
    def computing_in(self, precision: Precision) -> Iterator[None]:
        """Compute in this precision until the block ends."""
        precision = self.effective(precision)
        with self._forward.computing_in(precision, None if precision == "float32" else self._find_stand_in()):
            yield

    def tolerates(self, precision: Precision, call: Callable[[Tensor], Tensor], images: Tensor) -> bool:
        """Return whether TF32 or bfloat16 is faster on this device and preserves nine of ten predictions on images
        (b, c, h, w).

        `call` returns differentiable logits of images. The gradients in this precision must be finite.
        """
        if not (has_tf32 if precision == "tf32" else has_bfloat16)(self._forward.device):
            return False
        leaf = images.detach().clone().requires_grad_()
        try:
            with self.computing_in(precision):
                logits = call(leaf)
                (gradient,) = torch.autograd.grad(logits.sum(), leaf)
            with torch.no_grad():
                same = logits.argmax(dim=1) == call(images).argmax(dim=1)
        except Exception:  # noqa: BLE001 - foreign code may raise anything; a pass in float32 raises it under the model's name
            return False
        return bool(gradient.isfinite().all()) and same.float().mean().item() >= _SAME_PREDICTIONS

    def _find_stand_in(self) -> nn.Module:
        if self._stand_in is None:
            # The trial concerns the module itself, even if a function replaces its forward pass just now.
            with self._forward.computing_in("float32"), self._forward.plain():
                self._stand_in = self._fold() or self._forward.module
        return self._stand_in

    def _fold(self) -> nn.Module | None:
        """Return the module with folded batch norms, in the same memory layout.

        Return None if its logits on other images than it was folded on differ by more than rounding, or its gradients by more
        than `_GRADIENT_TOLERANCE`. Raises torch.OutOfMemoryError or MemoryError if it does not fit into memory.
        """
        if self._probe is None:
            return None
        try:
            folded = fold_batch_norms(self._forward.module, self._layout.copy(self._probe[:2]))
            if folded is None:
                return None
            if self._layout.is_channels_last:
                folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            logits, *gradients = self._measure()
            with self._forward.computing_in("float32", folded):
                folded_logits, *folded_gradients = self._measure()
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as failure:  # noqa: BLE001 - foreign code may raise anything; a pass of the module raises it by name
            raise_if_memory_is_out(failure)
            return None
        if torch.equal(logits, folded_logits) or not equal_up_to_rounding(logits, folded_logits):
            return None
        close = len(gradients) == len(folded_gradients) and all(
            bool((exact - other).norm() <= _GRADIENT_TOLERANCE * exact.norm())
            for exact, other in zip(gradients, folded_gradients, strict=True)
        )
        return folded if close else None

    def _measure(self) -> list[Tensor]:
        """Logits and gradients on images that the batch norms were not folded on."""
        assert self._probe is not None
        return measure_pass(lambda x: self._forward(self._layout.copy(x)), 1 - self._probe, gradients=True)[0]
