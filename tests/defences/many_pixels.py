"""Masked models of images of 3,072 values, where attacks on function values are as blind as the gradients that are hidden.

Behind each stands the best reader of its images, which is linear, and of which 8/255 in linf leaves nothing.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE, CLASSES = (3, 32, 32), 4


def patterns() -> Tensor:
    """The faint pattern of each class, of -1 and 1."""
    return torch.randn((CLASSES, *SHAPE), generator=torch.Generator().manual_seed(0)).sign()


def write_images(path: Path, n: int = 64) -> None:
    """Patterns of 0.02 in noise of 0.06, as a file of test images."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % CLASSES
    noise = torch.randn((n, *SHAPE), generator=generator)
    x = (0.5 + 0.02 * patterns()[y] + 0.06 * noise).clamp(0, 1)
    np.savez(path, x_test=x.numpy(), y_test=y.numpy())


class Reader(nn.Module):
    """How far each pattern is in an image."""

    patterns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("patterns", patterns().flatten(1) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return (self.seen(x) - 0.5).flatten(1) @ self.patterns.T

    def seen(self, x: Tensor) -> Tensor:
        """What of an image is read."""
        return x


class Waving(Reader):
    """A small wave on each value, 80 times as steep as the value itself."""

    def seen(self, x: Tensor) -> Tensor:
        return x + 0.002 * torch.sin(4e4 * x)


class Toned(Reader):
    """Each value is that of the nearest of 64 tones, looked up in a picture of them."""

    def seen(self, x: Tensor) -> Tensor:
        tones = torch.linspace(0, 1, 64).expand(len(x), 1, 1, -1)
        places = torch.stack([2 * x.flatten(1) - 1, torch.zeros_like(x.flatten(1))], dim=-1)[:, None]
        return F.grid_sample(tones, places, mode="nearest", align_corners=True).view_as(x)


class Folded(Reader):
    """A triangle wave of ReLUs, which no operation gives away."""

    slope, folds = 5, 9

    def seen(self, x: Tensor) -> Tensor:
        wave, height = x - 0.5, 0.25
        for _ in range(self.folds):
            wave, height = F.relu(wave) + F.relu(-wave) - height, height / 2
        return x + self.slope * wave


class Creased(Folded):
    """A wave so steep that no mean of few gradients sees beyond it."""

    slope, folds = 40, 10
