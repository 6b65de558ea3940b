"""Augmentation of training images: random translation and horizontal flips."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.config.recipe import Recipe


def augment(x: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Translate images (b, c, h, w) by up to `shift` pixels, and flip them with probability one half if `flip` is set."""
    x = _translated(x, recipe.shift, generator)
    if recipe.flip:
        flipped = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
        x = torch.where(flipped[:, None, None, None], x.flip(3), x)
    return x


def _translated(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    if not shift:
        return x
    padded = F.pad(x, (shift,) * 4)
    offsets = torch.randint(0, 2 * shift + 1, (len(x), 2), generator=generator)
    height, width = x.shape[2:]
    return torch.stack([padded[row, :, dy : dy + height, dx : dx + width] for row, (dy, dx) in enumerate(offsets.tolist())])
