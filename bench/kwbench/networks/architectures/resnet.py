"""ResNet-18 with the CIFAR stem (He et al. 2016, arXiv:1512.03385): a 3x3 first convolution, no pooling before the stages."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import ActivationFactory


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: ActivationFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.activation2 = activation()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        inner: Tensor = self.activation1(self.bn1(self.conv1(x)))
        out: Tensor = self.activation2(self.bn2(self.conv2(inner)) + self.shortcut(x))
        return out


class ResNet18(nn.Module):
    """Four stages of two blocks, `width` channels in the first, doubled from stage to stage."""

    revision: ClassVar[int] = 1

    def __init__(self, channels: int, classes: int, activation: ActivationFactory, *, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.activation = activation()
        stages = []
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            for block in range(2):
                stages.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1, activation))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (b, channels, h, w) to logits (b, classes)."""
        features = self.blocks(self.activation(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits
