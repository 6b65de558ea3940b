"""AlexNet and ResNet-18 as in torchvision, for images scaled up to 224 pixels (costa2020 3.2).

Their weights have torchvision's names, so that what was learned on ImageNet fits; only the last layer has classes of its own.
"""

from collections import OrderedDict
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import ActivationFactory


def scaled_up(x: Tensor, size: int) -> Tensor:
    """(b, c, h, w) to (b, c, size, size), bilinear."""
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


class AlexNet(nn.Module):
    """AlexNet in the form of Krizhevsky 2014 (arXiv:1404.5997); `width` and `hidden` are 64 and 4096 in torchvision."""

    revision: ClassVar[int] = 1

    def __init__(
        self,
        channels: int,
        classes: int,
        activation: ActivationFactory,
        *,
        width: int = 64,
        hidden: int = 4096,
        pixels: int = 224,
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 11, 4, 2),
            activation(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(width, 3 * width, 5, padding=2),
            activation(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(3 * width, 6 * width, 3, padding=1),
            activation(),
            nn.Conv2d(6 * width, 4 * width, 3, padding=1),
            activation(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            activation(),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(4 * width * 36, hidden),
            activation(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            activation(),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (b, channels, h, w) to logits (b, classes)."""
        features = F.adaptive_avg_pool2d(self.features(scaled_up(x, self.pixels)), 6)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, under torchvision's names."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: ActivationFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.activation2 = activation()
        self.downsample = (
            None
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        inner = self.bn2(self.conv2(self.activation1(self.bn1(self.conv1(x)))))
        out: Tensor = self.activation2(inner + (x if self.downsample is None else self.downsample(x)))
        return out


class ImageNetResNet18(nn.Module):
    """ResNet-18 with the ImageNet stem (arXiv:1512.03385): a 7x7 first convolution of stride 2, then pooling."""

    revision: ClassVar[int] = 1

    def __init__(
        self, channels: int, classes: int, activation: ActivationFactory, *, width: int = 64, pixels: int = 224
    ) -> None:
        super().__init__()
        self.pixels = pixels
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = width
        for stage in range(4):
            outputs, stride = width * 2**stage, 2 if stage else 1
            stages[f"layer{stage + 1}"] = nn.Sequential(
                Block(inputs, outputs, stride, activation), Block(outputs, outputs, 1, activation)
            )
            inputs = outputs
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.activation = activation()
        for name, stage_module in stages.items():
            self.add_module(name, stage_module)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (b, channels, h, w) to logits (b, classes)."""
        x = F.max_pool2d(self.activation(self.bn1(self.conv1(scaled_up(x, self.pixels)))), 3, 2, 1)
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
