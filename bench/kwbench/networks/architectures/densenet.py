"""DenseNet-BC with the CIFAR stem (Huang et al. 2017, arXiv:1608.06993): a 3x3 first convolution, no pooling before the
blocks.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import ActivationFactory

# Layers of the four dense blocks of DenseNet-121.
_LAYERS = (6, 12, 24, 16)


class Bottleneck(nn.Module):
    """Norm, activation, 1x1 convolution to four times the growth, and again, 3x3, to the growth; the input stays beside it."""

    def __init__(self, inputs: int, growth: int, activation: ActivationFactory) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.activation1 = activation()
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.activation2 = activation()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, inputs + growth, h, w)."""
        new = self.conv2(self.activation2(self.bn2(self.conv1(self.activation1(self.bn1(x))))))
        return torch.cat([new, x], dim=1)


class Transition(nn.Module):
    """Halves the channels and, as long as there is more than one pixel to halve, the image."""

    def __init__(self, inputs: int, activation: ActivationFactory) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.activation = activation()
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, inputs // 2, h / 2, w / 2)."""
        out: Tensor = self.conv(self.activation(self.bn(x)))
        return F.avg_pool2d(out, 2) if min(out.shape[2:]) > 1 else out


class DenseNet121(nn.Module):
    """Four dense blocks of 6, 12, 24 and 16 layers, each of which adds `growth` channels."""

    revision: ClassVar[int] = 1

    def __init__(self, channels: int, classes: int, activation: ActivationFactory, *, growth: int = 32) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        parts: list[nn.Module] = []
        for block, layers in enumerate(_LAYERS):
            for _ in range(layers):
                parts.append(Bottleneck(width, growth, activation))
                width += growth
            if block < len(_LAYERS) - 1:
                parts.append(Transition(width, activation))
                width //= 2
        self.blocks = nn.Sequential(*parts)
        self.bn = nn.BatchNorm2d(width)
        self.activation = activation()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (b, channels, h, w) to logits (b, classes)."""
        features = self.activation(self.bn(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits
