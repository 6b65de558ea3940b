"""Tiny networks whose exact robustness a mixed-integer program finds."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

from kwbench.networks.activations import Kwta, Lwta
from kwbench.randomness import seeded_globally


class Residual(nn.Module):
    """A convolution with batch norm beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 2, h, w) to the same shape."""
        return torch.relu(self.norm(self.conv(x)) + x)


class Normalised(nn.Module):
    """A network behind a normalisation of the pixels by buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(0.4))
        self.register_buffer("std", torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels to logits."""
        logits: Tensor = self.inner((x - self.mean) / self.std)
        return logits


def one_layer(activation: nn.Module) -> nn.Module:
    """16 pixels, 10 units, 3 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 10), activation, nn.Linear(10, 3))


def two_layers(first: nn.Module, second: nn.Module) -> nn.Module:
    """16 pixels, 8 and 6 units, 3 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), first, nn.Linear(8, 6), second, nn.Linear(6, 3))


def convolutional() -> nn.Module:
    """A convolution, a residual block and average pooling, behind a normalisation."""
    return Normalised(
        nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.ReLU(), Residual(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3))
    )


def pooled() -> nn.Module:
    """A convolution with max pooling of overlapping windows."""
    return nn.Sequential(nn.Conv2d(1, 1, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(4, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: one_layer(nn.ReLU()),
    "relu, two layers": lambda: two_layers(nn.ReLU(), nn.ReLU()),
    "kwta": lambda: one_layer(Kwta(Fraction(3, 10))),
    "kwta, two layers": lambda: two_layers(Kwta(Fraction(1, 2)), Kwta(Fraction(1, 3))),
    "kwta by channel": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 2, 2), Kwta(Fraction(1, 2), within="channel"), nn.Flatten(), nn.Linear(8, 3)
    ),
    "lwta": lambda: one_layer(Lwta(Fraction(1, 3))),
    "lwta and relu": lambda: two_layers(Lwta(Fraction(1, 2)), nn.ReLU()),
    "convolutional": convolutional,
    "pooled": pooled,
}


def network(name: str, seed: int = 0) -> nn.Module:
    """Return a network of NETWORKS with random weights, in evaluation mode, its batch norms with random statistics."""
    with seeded_globally(seed):
        module = NETWORKS[name]()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.uniform_(-0.2, 0.2)
                part.running_var.uniform_(0.5, 1.5)
    return module.eval().requires_grad_(False)


def images(count: int, seed: int = 0) -> Tensor:
    """Return random images (count, 1, 4, 4)."""
    return torch.rand((count, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
