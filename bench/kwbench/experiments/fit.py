"""A function of one number, fitted by a k-WTA network (xiao2020, arXiv:1905.10510, figure 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.attacks.attack import strict
from kwbench.experiments.experiment import numbers
from kwbench.networks.activations import Kwta
from kwbench.randomness import derived_seed, seeded_globally
from kwbench.record.measurement import Array


@dataclass(frozen=True)
class Fit:
    """Networks of `hidden` layers of `width` units, one with k-WTA and one with ReLU, fitted to the same points of a smooth
    function by `steps` steps of Adam on their mean squared error.

    The paper names neither function nor network; here it is sin(3 x) + x / 2 on [-2, 2].
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict

    points: int = 24
    width: int = 100
    hidden: int = 2
    gamma: float = 0.1
    steps: int = 2000
    learning_rate: float = 0.003
    grid: int = 2001

    def __post_init__(self) -> None:
        if min(self.points - 1, self.grid - 1, self.width, self.hidden, self.steps) < 1:
            raise ValueError("width, hidden and steps must be at least 1, points and grid at least 2")
        if not 0 < self.gamma <= 1 or self.learning_rate <= 0:
            raise ValueError("gamma must lie in (0, 1] and learning_rate be positive")

    def __call__(self, seed: int) -> dict[str, Array]:
        """`x` and `y` (points,); `place`, `target`, `kwta` and `relu` (grid,); `pattern` (grid,), a number that changes
        wherever the k-WTA network's activation pattern does.
        """
        place = torch.linspace(-2, 2, self.grid, dtype=torch.float64)[:, None]
        with seeded_globally(derived_seed(seed, "fit")):
            x = (4 * torch.rand(self.points, 1, dtype=torch.float64) - 2).sort(dim=0).values
            networks = {"kwta": self._network(lambda: Kwta(self.gamma)), "relu": self._network(nn.ReLU)}
            for network in networks.values():
                self._learn(network, x, _target(x))
        with torch.no_grad():
            fitted = {name: numbers(network(place)[:, 0]) for name, network in networks.items()}
            patterns = _patterns(networks["kwta"], place)
        changes = (patterns[1:] != patterns[:-1]).any(dim=1).cumsum(dim=0)
        return {
            "x": numbers(x[:, 0]),
            "y": numbers(_target(x)[:, 0]),
            "place": numbers(place[:, 0]),
            "target": numbers(_target(place)[:, 0]),
            "pattern": numbers(F.pad(changes, (1, 0))),
            **fitted,
        }

    def _network(self, activation: Callable[[], nn.Module]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before in [1, *[self.width] * (self.hidden - 1)]:
            layers += [nn.Linear(before, self.width), activation()]
        return nn.Sequential(*layers, nn.Linear(self.width, 1)).double()

    def _learn(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        optimiser = torch.optim.Adam(network.parameters(), self.learning_rate)
        for _ in range(self.steps):
            optimiser.zero_grad()
            F.mse_loss(network(x), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def _target(x: Tensor) -> Tensor:
    return (3 * x).sin() + x / 2


def _patterns(network: nn.Sequential, x: Tensor) -> Tensor:
    """Which units win at each x (b, 1), as booleans (b, units)."""
    found = []
    for layer in network:
        x = layer(x)
        if isinstance(layer, Kwta):
            found.append(x != 0)
    return torch.cat(found, dim=1)
