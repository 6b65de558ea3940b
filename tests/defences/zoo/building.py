"""Parts of which the zoo's defences are built: small networks on digits, their training, and wrappers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.randomness import seeded_globally
from support.small_models import digits

CLASSES = 10

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of a network on x (b, c, h, w) with labels y (b,)."""
    return F.cross_entropy(network(x), y)


def fitted(
    network: nn.Module, *, epochs: int = 12, learning_rate: float = 3e-3, loss: Loss = cross_entropy, seed: int = 1
) -> nn.Module:
    """Train a network by Adam on the digits' training images and freeze it. The caller's seed changes nothing."""
    torch.set_num_threads(1)
    train = digits().train.batch(range(len(digits().train)))
    network.train()
    with seeded_globally(seed):
        optimizer = torch.optim.Adam(network.parameters(), learning_rate)
        for _ in range(epochs):
            for rows in torch.randperm(len(train)).split(64):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                loss(network, train.x[rows], train.y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return network.eval().requires_grad_(False)


def cnn(
    activation: Callable[[], nn.Module] = nn.ReLU, *, channels: int = 1, outputs: int = CLASSES, seed: int = 0
) -> nn.Sequential:
    """Return an untrained network of the shape of small_models.trained_cnn, always from the same seed."""
    with seeded_globally(seed):
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            activation(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            activation(),
            nn.Flatten(),
            nn.Linear(512, outputs),
        )


def deeper_cnn(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return an untrained network of three convolutions with batch norm, which centres the values before each activation."""
    layers: list[nn.Module] = []
    with seeded_globally(0):
        for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), activation()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, CLASSES))


def with_weights_of(network: nn.Module, source: nn.Module) -> nn.Module:
    """Copy the weights of `source` into a network and freeze it."""
    network.load_state_dict(source.state_dict())
    return network.eval().requires_grad_(False)


def through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the values of `hard` with the gradient of `soft`: backward pass differentiable approximation (1802.00420)."""
    return soft + (hard - soft).detach()


class Before(nn.Module):
    """A transformation of the image, then a network."""

    def __init__(self, transform: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.transform, self.network = transform, network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.transform(x))
        return logits


def straight_through(defence: nn.Module) -> nn.Module:
    """Return a defence of the kind `Before` whose transformation has the gradient of the identity."""
    assert isinstance(defence, Before)
    transform = defence.transform
    return Before(lambda x: through(transform(x), x), defence.network)


class Scaled(nn.Module):
    """The logits of a network times a factor."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.network(x)
        return logits


class Several(nn.Module):
    """The logits of networks as (m, b, k)."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks])


class Mean(nn.Module):
    """The mean of the probabilities of networks, as log-probabilities."""

    def __init__(self, several: nn.Module) -> None:
        super().__init__()
        self.several = several

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.several(x).softmax(dim=2).mean(dim=0)
        return (probabilities + 1e-12).log()


def votes(logits: Tensor) -> Tensor:
    """Return the number of predictions for each class (b, k), of logits (m, b, k): counts, without a graph."""
    return F.one_hot(logits.argmax(dim=2), logits.shape[2]).sum(dim=0).float()
