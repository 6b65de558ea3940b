"""Small real models, trained once for all tests, and helpers to attack them."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.attacks import build_attack
from kwbench.data import Batch, DataSet, load_dataset
from kwbench.judge import judge, judge_clean
from kwbench.model import Model
from kwbench.outcome import Outcome, Status
from kwbench.threat import ThreatModel


@cache
def digits() -> DataSet:
    return load_dataset("digits")


@cache
def trained_cnn() -> nn.Module:
    """Return a CNN with 97 % accuracy on the digits, trained in about a second."""
    # So small a network gains nothing from a second thread, and has to wait for it on a busy machine.
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        train = digits().train.batch(range(len(digits().train)))
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(12):
            for rows in torch.randperm(len(train)).split(64):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                F.cross_entropy(network(train.x[rows]), train.y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return network.eval().requires_grad_(False)


def normed_cnn() -> nn.Module:
    """Return the CNN with batch norms after its convolutions and weights that compensate for them."""
    network = deepcopy(trained_cnn())
    assert isinstance(network, nn.Sequential)
    generator = torch.Generator().manual_seed(1)
    for place in (3, 1):
        convolution = network[place - 1]
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        mean, scale, shift = torch.randn((3, convolution.out_channels), generator=generator)
        norm = nn.BatchNorm2d(convolution.out_channels).eval().requires_grad_(False)
        assert norm.running_mean is not None
        norm.running_mean.copy_(mean)
        norm.weight.copy_(scale.abs() + 0.5)
        norm.bias.copy_(shift)
        back = (1 + norm.eps) ** 0.5 / norm.weight
        convolution.weight.mul_(back.view(-1, 1, 1, 1))
        convolution.bias.sub_(shift).mul_(back).add_(mean)
        network.insert(place, norm)
    return network


def cnn(**options: Any) -> Model:
    return wrapped(trained_cnn(), **options)


def wrapped(module: nn.Module, **options: Any) -> Model:
    torch.set_num_threads(1)
    return Model(module, name="small", **{"classes": 10, "shape": (1, 8, 8), **options})


def sharp(batch: Batch, model: Model | None = None) -> Batch:
    """Return the correctly classified samples."""
    predicted, _ = (model or cnn()).predict(batch.x)
    return batch.take((predicted == batch.y).nonzero().squeeze(1).tolist())


def first_images(n: int) -> Batch:
    return digits().test.batch(range(n))


def run(
    name: str, parameters: dict[str, Any], batch: Batch, threat: ThreatModel, *, model: Model | None = None, seed: int = 0
) -> list[Outcome]:
    """Return the outcomes of an attack by name; the surrogate of a transfer attack is the CNN too."""
    victim = model or cnn()
    attack = build_attack(name, parameters, lambda _: cnn())
    return judge(victim, attack, name, batch, threat, seed, judge_clean(victim, batch, seed))


def broken(outcomes: Sequence[Outcome]) -> Tensor:
    assert all(outcome.status in (Status.BROKEN, Status.HELD, Status.WRONG) for outcome in outcomes), outcomes
    return torch.tensor([outcome.status is Status.BROKEN for outcome in outcomes])


class Noisy(nn.Module):
    """A network with Gaussian noise on its input, drawn in every pass."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x + self.sigma * torch.randn_like(x))
        return logits


class Quantised(nn.Module):
    """A network on pixels rounded to a few levels: its gradient is zero everywhere."""

    def __init__(self, network: nn.Module, levels: int = 8) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x * self.levels).round() / self.levels)
        return logits


class Refusing(nn.Module):
    """A network that refuses values outside the pixel range [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        if x.min() < 0 or x.max() > 1:
            raise ValueError(f"pixels in [{x.min():.3g}, {x.max():.3g}]")
        logits: Tensor = self.network(x)
        return logits


class Linear(nn.Module):
    """Logits W x + b of flattened images."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)
