"""Training images as they come each time: moved, and mirrored."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kwbench.config.recipe import Recipe


def augmented(x: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """(b, c, h, w) to the same shape, each image moved by up to `shift` pixels and mirrored every other time."""
    x = _shifted(x, recipe.shift, generator)
    if recipe.flip:
        mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


def _shifted(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    if not shift:
        return x
    padded = F.pad(x, (shift,) * 4)
    moves = torch.randint(0, 2 * shift + 1, (len(x), 2), generator=generator)
    height, width = x.shape[2:]
    return torch.stack([padded[row, :, dy : dy + height, dx : dx + width] for row, (dy, dx) in enumerate(moves.tolist())])
