"""Natural perturbations, such as noise and rotation. There is no search: each image gets one random draw.

They are also applied to samples that were wrong before, and the predictions are recorded. They ignore the ball: use linf with
eps 1, which contains every image; an image outside a smaller ball is `invalid`.
Hendrycks and Dietterich 2019 (arXiv:1903.12261); with the parameters of xiao2020 (arXiv:1905.10510), D.5.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Luma of ITU-R BT.601.
_GREY = (0.299, 0.587, 0.114)


class _NaturalPerturbation(Attack):
    """A random perturbation that does not use the model."""

    norms = frozenset({"linf"})
    needs = "nothing"
    natural = True

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        return 0


@dataclass(frozen=True)
class GaussianBlind(_NaturalPerturbation):
    """Gaussian noise of standard deviation `std` on every pixel, clipped to [0, 1]."""

    std: float = 0.1

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError("std must be positive")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Perturb each x (b, c, h, w) once, without using the model or y."""
        return (x + self.std * rng.normal("noise", x.shape[1:]).to(x.device)).clamp(0, 1)


@dataclass(frozen=True)
class Translation(_NaturalPerturbation):
    """A shift by a whole number of up to `pixels` pixels in each direction; pixels that enter are black."""

    pixels: int = 5

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError("pixels must be at least 1")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Perturb each x (b, c, h, w) once, without using the model or y."""
        reach, (height, width) = self.pixels, x.shape[2:]
        wide = F.pad(x, (reach, reach, reach, reach))
        corners = rng.uniform("corner", (2,), 0, 2 * reach + 1).floor().long().clamp_max(2 * reach).tolist()
        return torch.stack(
            [image[:, top : top + height, left : left + width] for image, (top, left) in zip(wide, corners, strict=True)]
        )


@dataclass(frozen=True)
class Rotation(_NaturalPerturbation):
    """A rotation about the centre by up to `degrees` in both directions, nearest neighbour; pixels from outside are black."""

    degrees: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.degrees <= 180:
            raise ValueError("degrees must lie in (0, 180]")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Perturb each x (b, c, h, w) once, without using the model or y."""
        angle = rng.uniform("angle", (), -self.degrees, self.degrees).to(x.device) * (math.pi / 180)
        height, width = x.shape[2:]
        rows, columns = torch.meshgrid(
            torch.arange(height, device=x.device) - (height - 1) / 2,
            torch.arange(width, device=x.device) - (width - 1) / 2,
            indexing="ij",
        )
        cosine, sine = (value.view(-1, 1, 1) for value in (angle.cos(), angle.sin()))
        row = (cosine * rows + sine * columns + (height - 1) / 2).round().long()
        column = (cosine * columns - sine * rows + (width - 1) / 2).round().long()
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        source = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(1)[:, None]
        rotated = x.flatten(2).gather(2, source.expand(-1, x.shape[1], -1)).view_as(x)
        return rotated * inside[:, None]


@dataclass(frozen=True)
class ColourJitter(_NaturalPerturbation):
    """Brightness, contrast and saturation in random order, each times a factor within `strength` of 1, as in torchvision.

    Contrast interpolates towards the mean grey of the image, saturation towards the grey of each pixel; it does not change grey
    images.
    """

    strength: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError("strength must lie in (0, 1]")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Perturb each x (b, c, h, w) with 1 or 3 channels once, without using the model or y."""
        factors = rng.uniform("factors", (3,), 1 - self.strength, 1 + self.strength).to(x.device)
        orders = rng.uniform("order", (3,)).argsort(dim=1).to(x.device)
        z = x
        for position in range(3):
            kind = orders[:, position].view(-1, 1, 1, 1)
            factor = factors.gather(1, orders[:, position : position + 1]).view(-1, 1, 1, 1)
            grey = _grey(z)
            towards = torch.where(kind == 0, 0.0, torch.where(kind == 1, grey.mean(dim=(1, 2, 3), keepdim=True), grey))
            z = (factor * z + (1 - factor) * towards).clamp(0, 1)
        return z


def _grey(x: Tensor) -> Tensor:
    """Return the luma (b, 1, h, w) of images with 1 or 3 channels."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(_GREY).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
