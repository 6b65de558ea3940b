"""VGG with batch norm (Simonyan and Zisserman 2014, arXiv:1409.1556), with the one-layer classifier usual on small images."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import ActivationFactory

# Convolutions in each of the five stages; channels are 1, 2, 4, 8 and 8 times the width.
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Vgg(nn.Module):
    """Five stages of 3x3 convolutions, each halving the image by max pooling, as long as there is more than one pixel to halve.

    Raises ValueError for a depth other than 11, 13, 16 or 19.
    """

    revision: ClassVar[int] = 1

    def __init__(self, channels: int, classes: int, activation: ActivationFactory, *, depth: int = 19, width: int = 64) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"depth: {depth} is none of {', '.join(map(str, _STAGES))}")
        self.stages = nn.ModuleList()
        inputs = channels
        for factor, convolutions in zip((1, 2, 4, 8, 8), _STAGES[depth], strict=True):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, width * factor, 3, 1, 1, bias=False), nn.BatchNorm2d(width * factor), activation()]
                inputs = width * factor
            self.stages.append(nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (b, channels, h, w) to logits (b, classes)."""
        for stage in self.stages:
            x = stage(x)
            if min(x.shape[2:]) > 1:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
