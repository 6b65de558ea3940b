"""WideResNet-d-w (Zagoruyko and Komodakis 2016, arXiv:1605.07146), with pre-activation basic blocks."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.networks.activations import ActivationFactory


class PreActivationBlock(nn.Module):
    """Norm, activation, convolution, twice; where the shape changes, the shortcut is a convolution of the activated input."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        activation: ActivationFactory,
        convolution: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.activation1 = activation()
        self.conv1 = convolution(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.activation2 = activation()
        self.conv2 = convolution(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h / stride, w / stride)."""
        active = self.activation1(self.bn1(x))
        out: Tensor = self.conv2(self.activation2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `widen` channels.

    Raises ValueError if the depth is not 6 n + 4. `stem` is the number of channels of the first convolution, `convolution`
    what the blocks are made of.
    """

    revision: ClassVar[int] = 1

    def __init__(
        self,
        channels: int,
        classes: int,
        activation: ActivationFactory,
        *,
        depth: int = 34,
        widen: int = 10,
        stem: int = 16,
        convolution: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth: {depth} is not 6 n + 4, such as 10, 16, 22, 28 or 34")
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        blocks = []
        inputs = stem
        for stage in range(3):
            outputs = 16 * 2**stage * widen
            for block in range((depth - 4) // 6):
                stride = 2 if stage and not block else 1
                blocks.append(PreActivationBlock(inputs, outputs, stride, activation, convolution))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.activation = activation()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (b, channels, h, w) to logits (b, classes)."""
        features = self.activation(self.bn1(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits
