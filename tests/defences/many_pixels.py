"""Models of images of 3,072 values that hide their gradients; in so many dimensions gradient-free attacks fail, too.

Each wraps the optimal classifier of its images, which is linear and has no robust accuracy at 8/255 in linf.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE, CLASSES = (3, 32, 32), 4


def patterns() -> Tensor:
    """Return the pattern of each class, of values -1 and 1, as (4, 3, 32, 32)."""
    return torch.randn((CLASSES, *SHAPE), generator=torch.Generator().manual_seed(0)).sign()


def write_images(path: Path, n: int = 64) -> None:
    """Write an npz file of test images: patterns of amplitude 0.02 in noise of standard deviation 0.06."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % CLASSES
    noise = torch.randn((n, *SHAPE), generator=generator)
    x = (0.5 + 0.02 * patterns()[y] + 0.06 * noise).clamp(0, 1)
    np.savez(path, x_test=x.numpy(), y_test=y.numpy())


class Reader(nn.Module):
    """The optimal classifier: the correlation of an image with each pattern."""

    patterns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("patterns", patterns().flatten(1) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return (self.seen(x) - 0.5).flatten(1) @ self.patterns.T

    def seen(self, x: Tensor) -> Tensor:
        """Return the image as the classifier sees it."""
        return x


class Waving(Reader):
    """Adds to each value a small wave that is 80 times as steep as the value itself."""

    def seen(self, x: Tensor) -> Tensor:
        return x + 0.002 * torch.sin(4e4 * x)


class Toned(Reader):
    """Replaces each value by the nearest of 64 tones, looked up in an image of them."""

    def seen(self, x: Tensor) -> Tensor:
        tones = torch.linspace(0, 1, 64).expand(len(x), 1, 1, -1)
        places = torch.stack([2 * x.flatten(1) - 1, torch.zeros_like(x.flatten(1))], dim=-1)[:, None]
        return F.grid_sample(tones, places, mode="nearest", align_corners=True).view_as(x)


class Folded(Reader):
    """Adds a triangle wave made of ReLUs, which no single operation reveals."""

    slope, folds = 5, 9

    def seen(self, x: Tensor) -> Tensor:
        wave, height = x - 0.5, 0.25
        for _ in range(self.folds):
            wave, height = F.relu(wave) + F.relu(-wave) - height, height / 2
        return x + self.slope * wave


class Creased(Folded):
    """Adds a triangle wave so steep that a mean of few gradients cannot average it out."""

    slope, folds = 40, 10
