"""Augmentation of training images: random translation and horizontal flips."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.config.recipe import Recipe


def augment(x: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Translate images (b, c, h, w) by up to `shift` pixels, and flip them with probability one half if `flip` is set."""
    x = _translated(x, recipe.shift, generator)
    if recipe.flip:
        flipped = (torch.rand(len(x), generator=generator) < 0.5).to(x.device, non_blocking=True)
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    return x


def _translated(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    if not shift:
        return x
    padded = F.pad(x, (shift,) * 4)
    # Drawn on the CPU, so that all devices train on the same images.
    down, across = torch.randint(0, 2 * shift + 1, (len(x), 2), generator=generator).to(x.device, non_blocking=True).T
    rows, channels, height, width = (torch.arange(size, device=x.device) for size in x.shape)
    vertical, horizontal = down[:, None] + height, across[:, None] + width
    return padded[rows[:, None, None, None], channels[:, None, None], vertical[:, None, :, None], horizontal[:, None, None, :]]
