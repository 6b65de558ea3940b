"""Defences on digits that protect nothing, each of a kind that has fooled evaluations before.

None is trained adversarially, and a plain attack breaks the network inside: any robustness measured is a failure of the attack.
The kinds are those of Carlini's self-study (github.com/google-research/selfstudy-adversarial-robustness) and of
Athalye et al. 2018 (arXiv:1802.00420).

Each factory is a model for the command line, with the tests on the path:
`PYTHONPATH=tests kwbench evaluate tests/defences/broken_defences.py:jump --suite strong`.
A factory trains for a second or two, always to the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.randomness import seeded_globally
from support.small_models import digits, trained_cnn

FILE = Path(__file__).resolve()
EPS = "0.2"

Verdict = Literal["overestimated", "confirmed", "inconclusive"]


@dataclass(frozen=True)
class Defence:
    """A factory of this file and what is known of its model in linf 0.2 on the first 64 test images.

    Attributes:
        factory: returns the defended network.
        undefended: returns a similar network whose gradients autograd can follow.
        kind: how the defence fools attacks.
        truth: upper bound on the true robust accuracy: the accuracy of the defence on the images of PGD on `undefended`.
        flattery: lower bound on the accuracy after plain PGD (40 steps, torch's cross-entropy, exact gradients); 1 if plain PGD
            cannot run.
        verdict: the expected verdict on the result of Auto-PGD with exact gradients, the protocol of the strong suite.
        reason: why that verdict is right.
    """

    factory: Callable[[], nn.Module]
    undefended: Callable[[], nn.Module]
    kind: Literal["shattered", "vanishing", "stochastic", "hidden"]
    truth: float
    flattery: float
    verdict: Verdict
    reason: str

    @property
    def name(self) -> str:
        return self.factory.__name__

    @property
    def model(self) -> str:
        """The model as the command line takes it."""
        return f"{FILE}:{self.name}"


def fitted(network: nn.Module, *, epochs: int = 12, learning_rate: float = 3e-3) -> nn.Module:
    """Train a network by Adam on the digits' training images and freeze it. The caller's seed changes nothing."""
    torch.set_num_threads(1)
    train = digits().train.batch(range(len(digits().train)))
    network.train()
    with seeded_globally(1):
        optimizer = torch.optim.Adam(network.parameters(), learning_rate)
        for _ in range(epochs):
            for rows in torch.randperm(len(train)).split(64):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                F.cross_entropy(network(train.x[rows]), train.y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return network.eval().requires_grad_(False)


def cnn(activation: Callable[[], nn.Module] = nn.ReLU, *, channels: int = 1) -> nn.Sequential:
    """Return an untrained network of the shape of small_models.trained_cnn, always from the same seed."""
    with seeded_globally(0):
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            activation(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            activation(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )


def deeper_cnn(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return an untrained network of three convolutions with batch norm, which centres the values before each activation."""
    layers: list[nn.Module] = []
    with seeded_globally(0):
        for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), activation()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def with_weights_of(network: nn.Module, source: nn.Module) -> nn.Module:
    """Copy the weights of `source` into a network and freeze it."""
    network.load_state_dict(source.state_dict())
    return network.eval().requires_grad_(False)


class Before(nn.Module):
    """A transformation of the image, then a network."""

    def __init__(self, transform: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.transform, self.network = transform, network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.transform(x))
        return logits


class Jump(nn.Module):
    """0 below zero, 5 + x above: every unit is discontinuous at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, 0.0, 5 + x)


class SoftJump(nn.Module):
    """A smooth version of the jump."""

    def forward(self, x: Tensor) -> Tensor:
        return (5 + F.softplus(x, beta=4)) * torch.sigmoid(4 * x)


@cache
def jump() -> nn.Module:
    """A network of discontinuous units, trained as such."""
    return fitted(deeper_cnn(Jump), learning_rate=1e-3)


class Rounded(nn.Module):
    """Features rounded to multiples of 1/16, whose gradient is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(16 * F.relu(x)) / 16


def rounded_features() -> nn.Module:
    """The trained CNN with rounded features after every convolution."""
    first, _, second, _, *rest = trained_cnn().children()
    return nn.Sequential(first, Rounded(), second, Rounded(), *rest)


class _SignThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        passed: Tensor = gradient * (x.abs() < 1)
        return passed


class Sign(nn.Module):
    """The sign of each feature; its gradient in training is that of a clipped identity."""

    def forward(self, x: Tensor) -> Tensor:
        return _SignThrough.apply(x) if self.training else torch.sign(x)  # type: ignore[no-untyped-call]


class SoftSign(nn.Module):
    """A smooth version of the sign."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(3 * x)


@cache
def sign_features() -> nn.Module:
    """A network of binary features."""
    return fitted(cnn(Sign))


def detached() -> nn.Module:
    """The gradient is cut off although the graph reaches the pixels: every derivative is exactly 0."""
    return Before(lambda x: x.detach() + 0 * x, trained_cnn())


def quantised_input() -> nn.Module:
    """The trained CNN behind pixels of eight levels."""
    return Before(lambda x: (x * 7.999).floor() / 7, trained_cnn())


class Scaled(nn.Module):
    """Logits so large that a float32 softmax has a gradient of zero."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.network(x)
        return logits


def scaled_logits() -> nn.Module:
    return Scaled(trained_cnn(), 5_000)


class RandomNeuron(nn.Module):
    """ReLU of a noisy input."""

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.sigma * torch.randn_like(x))


@cache
def random_neurons() -> nn.Module:
    """Noise on the pixels and on every activation, also in training."""
    return fitted(Before(lambda x: x + 0.1 * torch.randn_like(x), deeper_cnn(RandomNeuron)), epochs=20)


def resized(x: Tensor) -> Tensor:
    """Resize x to a random side of 8 to 15 pixels, at a random position in a black square of 16 (arXiv:1711.01991)."""
    side = int(torch.randint(8, 16, ()))
    top, left = torch.randint(0, 17 - side, (2,)).tolist()
    larger = F.interpolate(x, size=(side, side), mode="nearest")
    return F.pad(larger, (left, 16 - side - left, top, 16 - side - top))


@cache
def random_resizing() -> nn.Module:
    """One random size and position per pass, also in training."""
    with seeded_globally(0):
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
    return fitted(Before(resized, network), epochs=20)


class Vote(nn.Module):
    """The number of `draws` predictions of a noisy network for each class: counts, without a graph."""

    def __init__(self, network: nn.Module, draws: int) -> None:
        super().__init__()
        self.network, self.draws = network, draws

    def forward(self, x: Tensor) -> Tensor:
        votes = [F.one_hot(self.network(x).argmax(dim=1), 10) for _ in range(self.draws)]
        return torch.stack(votes).sum(dim=0).float()


def majority_vote() -> nn.Module:
    """The majority vote of 16 draws of the random neurons."""
    return Vote(random_neurons(), 16)


def thermometer(x: Tensor) -> Tensor:
    """Encode each pixel as ten bits, one a channel: whether it is at least 0.05, 0.15, ... (Buckman et al. 2018)."""
    levels = torch.linspace(0.05, 0.95, 10).view(1, -1, 1, 1)
    return (x >= levels).float()


@cache
def thermometer_code() -> nn.Module:
    """A network trained on the thermometer code; no graph leads to the pixels."""
    return fitted(Before(thermometer, cnn(channels=10)))


def numpy_detour() -> nn.Module:
    """The image passes through NumPy, unchanged and without a graph."""
    return Before(lambda x: torch.from_numpy(x.detach().cpu().numpy().copy()).to(x.device), trained_cnn())


def soft_thermometer(x: Tensor) -> Tensor:
    """A smooth version of the thermometer code."""
    levels = torch.linspace(0.05, 0.95, 10).view(1, -1, 1, 1)
    return torch.sigmoid((x - levels) / 0.05)


DEFENCES = (
    Defence(
        jump,
        lambda: with_weights_of(deeper_cnn(SoftJump), jump()),
        "shattered",
        truth=0.0,
        flattery=0.12,
        verdict="confirmed",
        reason="small steps are misled and leave one sample in eight, but Auto-PGD's larger steps cross the jumps",
    ),
    Defence(
        rounded_features,
        trained_cnn,
        "shattered",
        truth=1 / 32,
        flattery=0.85,
        verdict="overestimated",
        reason="every gradient is exactly zero: the protocol stays near its random start",
    ),
    Defence(
        sign_features,
        lambda: with_weights_of(cnn(SoftSign), sign_features()),
        "shattered",
        truth=1 / 32,
        flattery=0.8,
        verdict="overestimated",
        reason="every gradient is exactly zero: the protocol stays near its random start",
    ),
    Defence(
        detached,
        trained_cnn,
        "hidden",
        truth=1 / 32,
        flattery=0.85,
        verdict="overestimated",
        reason="every gradient is exactly zero: the protocol stays near its random start",
    ),
    Defence(
        quantised_input,
        trained_cnn,
        "shattered",
        truth=1 / 32,
        flattery=0.85,
        verdict="overestimated",
        reason="every gradient is exactly zero, though the radius spans more than one level either way",
    ),
    Defence(
        scaled_logits,
        trained_cnn,
        "vanishing",
        truth=1 / 32,
        flattery=0.85,
        verdict="confirmed",
        reason="torch's cross-entropy has no gradient here, but kwbench's losses are right at any scale of the logits",
    ),
    Defence(
        random_neurons,
        random_neurons,
        "stochastic",
        truth=0.1,
        flattery=0.15,
        verdict="confirmed",
        reason="one draw a step is noisy, but many steps average the noise as well as many draws do (Gao et al. 2022)",
    ),
    Defence(
        random_resizing,
        random_resizing,
        "stochastic",
        truth=0.04,
        flattery=0.1,
        verdict="confirmed",
        reason="one draw a step is noisy, but many steps average the noise as well as many draws do (Gao et al. 2022)",
    ),
    Defence(
        majority_vote,
        random_neurons,
        "hidden",
        truth=0.08,
        flattery=1.0,
        verdict="overestimated",
        reason="counts of votes have no graph: without a gradient the protocol is no more than its random start",
    ),
    Defence(
        thermometer_code,
        lambda: Before(soft_thermometer, thermometer_code().get_submodule("network")),
        "shattered",
        truth=1 / 32,
        flattery=1.0,
        verdict="overestimated",
        reason="comparisons cut the graph: without a gradient the protocol is no more than its random start",
    ),
    Defence(
        numpy_detour,
        trained_cnn,
        "hidden",
        truth=1 / 32,
        flattery=1.0,
        verdict="overestimated",
        reason="the detour cuts the graph: without a gradient the protocol is no more than its random start",
    ),
)
