"""The three-layer convolutional network of the papers' MNIST experiments (xiao2020 D.4, arXiv:1905.10510).

The paper names no sizes; these are two 5x5 convolutions with pooling and one hidden linear layer.
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import ActivationFactory


class Cnn3(nn.Module):
    """Convolutions of `width` and 2 * `width` channels, pooled to 4x4, then `hidden` units."""

    revision: ClassVar[int] = 1

    def __init__(
        self, channels: int, classes: int, activation: ActivationFactory, *, width: int = 32, hidden: int = 256
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.activation2 = activation()
        self.fc1 = nn.Linear(2 * width * 16, hidden)
        self.activation3 = activation()
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (b, channels, h, w) to logits (b, classes)."""
        x = F.max_pool2d(self.activation1(self.conv1(x)), 2)
        x = F.adaptive_max_pool2d(self.activation2(self.conv2(x)), 4).flatten(1)
        logits: Tensor = self.fc2(self.activation3(self.fc1(x)))
        return logits
