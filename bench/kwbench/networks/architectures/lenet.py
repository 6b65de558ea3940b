"""The small network of hicheur2024: two convolutions, each with pooling, then three linear layers.

The paper names no sizes; these are LeNet-5's (LeCun et al. 1998), which end at the accuracy that it reports.
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import ActivationFactory
from kwbench.networks.architectures.noise import NoiseInjection


class LeNet(nn.Module):
    """5x5 convolutions of `width` and 16/6 of it, pooled to 5x5, then 120 and 84 units.

    With `injected`, noise comes in where hicheur2024 adds its three layers: after each pooling and after flattening.
    """

    revision: ClassVar[int] = 1

    def __init__(
        self, channels: int, classes: int, activation: ActivationFactory, *, width: int = 6, injected: bool = False
    ) -> None:
        super().__init__()
        wide = 16 * width // 6
        self.conv1 = nn.Conv2d(channels, width, 5)
        self.activation1 = activation()
        self.noise1 = _noise(injected)
        self.conv2 = nn.Conv2d(width, wide, 5)
        self.activation2 = activation()
        self.noise2 = _noise(injected)
        self.noise3 = _noise(injected)
        self.fc1 = nn.Linear(wide * 25, 120)
        self.activation3 = activation()
        self.fc2 = nn.Linear(120, 84)
        self.activation4 = activation()
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (b, channels, h, w), of at least 16 x 16, to logits (b, classes)."""
        x = self.noise1(F.max_pool2d(self.activation1(self.conv1(x)), 2))
        x = self.noise2(F.adaptive_max_pool2d(self.activation2(self.conv2(x)), 5))
        x = self.noise3(x.flatten(1))
        logits: Tensor = self.fc3(self.activation4(self.fc2(self.activation3(self.fc1(x)))))
        return logits


def _noise(injected: bool) -> nn.Module:
    return NoiseInjection() if injected else nn.Identity()
