"""The memory layout of images and weights: channels last, which convolutions prefer, where a trial shows it to be safe.

Elsewhere images are contiguous, because modules may flatten them by `view`.
"""

import torch
from torch import Tensor

from kwbench.model.forward import Forward, equal_up_to_rounding
from kwbench.randomness import seeded_globally


class MemoryLayout:
    """Whether images have channels last, decided by trial on the first use in float32 and in bfloat16.

    `probe` are images (b, c, h, w) for the trial in float32; without them nothing is laid out anew in float32. `shape` is
    (c, h, w).
    """

    def __init__(self, forward: Forward, shape: tuple[int, ...], probe: Tensor | None) -> None:
        self._forward, self._shape, self._probe = forward, shape, probe
        self._decisions: dict[bool, bool] = {}

    @property
    def is_channels_last(self) -> bool:
        """Whether images of the current precision have channels last. A folded module is laid out as the module is."""
        bfloat16 = self._forward.precision == "bfloat16"
        if bfloat16 not in self._decisions:
            self._decisions[bfloat16] = self._accepts_channels_last() if bfloat16 else self._convert_to_channels_last()
        return self._decisions[bfloat16]

    def copy(self, x: Tensor) -> Tensor:
        """Return a copy of x in this layout, which spares convolutions copies of their own."""
        return x.clone(memory_format=torch.channels_last if self.is_channels_last else torch.contiguous_format)

    def _accepts_channels_last(self) -> bool:
        """Whether the module runs on such images. One that calls `view` to flatten an image does not."""
        images = torch.zeros((2, *self._shape), device=self._forward.device).contiguous(memory_format=torch.channels_last)
        try:
            with torch.no_grad(), seeded_globally(0):
                self._forward(images)
        except RuntimeError:
            return False
        return True

    def _convert_to_channels_last(self) -> bool:
        """Convert the weights on a CPU, if the logits then differ by rounding only; else leave them contiguous."""
        if self._probe is None or self._forward.device.type != "cpu":
            return False
        images, module = self._probe[:2], self._forward.module
        try:
            with torch.no_grad(), self._forward.computing_in("float32"):
                before = self._forward(images.clone(memory_format=torch.contiguous_format))
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                after = self._forward(images.clone(memory_format=torch.channels_last))
            if equal_up_to_rounding(before, after):
                return True
        except Exception:  # noqa: BLE001 - foreign code may raise anything; a real pass then raises it under the model's name
            pass
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return False
