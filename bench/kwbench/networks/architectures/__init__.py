"""The architectures by the names of registry entries. Each network maps pixels in [0, 1] to logits."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kwbench.errors import UsageError, did_you_mean
from kwbench.networks.activations import ActivationFactory
from kwbench.networks.architectures.cnn3 import Cnn3
from kwbench.networks.architectures.densenet import DenseNet121
from kwbench.networks.architectures.imagenet import AlexNet, ImageNetResNet18
from kwbench.networks.architectures.indian_buffet import GatedConv2d
from kwbench.networks.architectures.lenet import LeNet
from kwbench.networks.architectures.noise import Smoothed
from kwbench.networks.architectures.resnet import ResNet18
from kwbench.networks.architectures.vgg import Vgg
from kwbench.networks.architectures.wide_resnet import WideResNet

__all__ = ["ARCHITECTURES", "GatedConv2d", "Normalised", "Smoothed", "build_network"]

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "resnet18_imagenet": ImageNetResNet18,
    "wide_resnet": WideResNet,
    "wide_resnet_ibp": partial(WideResNet, convolution=GatedConv2d),
    "densenet121": DenseNet121,
    "vgg11": partial(Vgg, depth=11),
    "vgg13": partial(Vgg, depth=13),
    "vgg16": partial(Vgg, depth=16),
    "vgg19": partial(Vgg, depth=19),
    "alexnet": AlexNet,
    "cnn3": Cnn3,
    "lenet": LeNet,
    "lenet_pni": partial(LeNet, injected=True),
}


class Normalised(nn.Module):
    """A network on images normalised by (x - mean) / std of each channel of its training data."""

    revision: ClassVar[int] = 1

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] (b, c, h, w) to logits (b, k)."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def build_network(
    name: str, parameters: Mapping[str, Any], activation: ActivationFactory, channels: int, classes: int
) -> nn.Module:
    """Build an untrained network. Raises UsageError for unknown names and invalid parameters."""
    if name not in ARCHITECTURES:
        raise UsageError(f"architecture {name!r} is unknown; {did_you_mean(name, ARCHITECTURES)}")
    own = {"channels", "classes", "activation", "convolution", "injected"}
    known = [parameter for parameter in inspect.signature(ARCHITECTURES[name]).parameters if parameter not in own]
    for parameter, value in parameters.items():
        if parameter not in known:
            raise UsageError(f"architecture {name!r} has no parameter {parameter!r}; {did_you_mean(parameter, known)}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"architecture {name!r}: {parameter}: {value!r} is not a positive whole number")
    try:
        return ARCHITECTURES[name](channels=channels, classes=classes, activation=activation, **parameters)
    except (TypeError, ValueError) as failure:
        raise UsageError(f"architecture {name!r}: {failure}") from None
