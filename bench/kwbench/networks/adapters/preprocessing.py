"""A library's preprocessing as the first layer of its model, so that attacks and distances are in pixels from 0 to 1."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Preprocessed(nn.Module):
    """A network behind its preprocessing: grey images become three equal channels, then resizing, then normalisation.

    Resizing is that of torchvision's transforms on tensors, with antialiasing. Images of the right size stay as they are.
    """

    revision = 1

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        """`mean` and `std` are those of each channel; `size` (h, w) is what the network takes, None for any."""
        super().__init__()
        self.network = network
        self.size = size
        self.interpolation = interpolation if interpolation in ("bilinear", "bicubic", "nearest") else "bilinear"
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Any:
        """Return the network's output for x (b, c, h, w) in [0, 1]."""
        if x.shape[1] == 1 and len(self.mean) == 3:
            x = x.expand(-1, 3, -1, -1)
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            smooth = {} if self.interpolation == "nearest" else {"antialias": True, "align_corners": False}
            x = F.interpolate(x, size=self.size, mode=self.interpolation, **smooth)
        return self.network((x - self.mean) / self.std)


def preprocessing_notes(shape: Sequence[int], size: tuple[int, int] | None) -> tuple[str, ...]:
    """Return a note if images (c, h, w) are resized within the model."""
    if size is None or tuple(shape[-2:]) == size:
        return ()
    return (f"images are resized from {shape[-2]} x {shape[-1]} to {size[0]} x {size[1]} within the model",)
