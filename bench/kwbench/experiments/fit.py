"""Fit a one-dimensional function with a k-WTA network (xiao2020, arXiv:1905.10510, figure 1)."""

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
    """Fit two networks, one with k-WTA and one with ReLU, to the same `points` of a smooth function.

    Both have `hidden` layers of `width` units and take `steps` steps of Adam on the mean squared error. The paper states
    neither function nor network; here the function is sin(3 x) + x / 2 on [-2, 2].
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
        """Return `x` and `y` (points,), the training data, and the functions on a grid.

        `place` (grid,) holds the grid's x, `target`, `kwta` and `relu` (grid,) the values there. `pattern` (grid,) is a
        number that increases wherever the k-WTA network's activation pattern changes.
        """
        grid = torch.linspace(-2, 2, self.grid, dtype=torch.float64)[:, None]
        with seeded_globally(derived_seed(seed, "fit")):
            x = (4 * torch.rand(self.points, 1, dtype=torch.float64) - 2).sort(dim=0).values
            networks = {"kwta": self._network(lambda: Kwta(self.gamma)), "relu": self._network(nn.ReLU)}
            for network in networks.values():
                self._train(network, x, _target(x))
        with torch.no_grad():
            fitted = {name: numbers(network(grid)[:, 0]) for name, network in networks.items()}
            patterns = _patterns(networks["kwta"], grid)
        changes = (patterns[1:] != patterns[:-1]).any(dim=1).cumsum(dim=0)
        return {
            "x": numbers(x[:, 0]),
            "y": numbers(_target(x)[:, 0]),
            "place": numbers(grid[:, 0]),
            "target": numbers(_target(grid)[:, 0]),
            "pattern": numbers(F.pad(changes, (1, 0))),
            **fitted,
        }

    def _network(self, activation: Callable[[], nn.Module]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs in [1, *[self.width] * (self.hidden - 1)]:
            layers += [nn.Linear(inputs, self.width), activation()]
        return nn.Sequential(*layers, nn.Linear(self.width, 1)).double()

    def _train(self, network: nn.Module, x: Tensor, y: Tensor) -> None:
        optimiser = torch.optim.Adam(network.parameters(), self.learning_rate)
        for _ in range(self.steps):
            optimiser.zero_grad()
            F.mse_loss(network(x), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def _target(x: Tensor) -> Tensor:
    return (3 * x).sin() + x / 2


def _patterns(network: nn.Sequential, x: Tensor) -> Tensor:
    """The units that win for each input x (b, 1), as booleans (b, units)."""
    patterns = []
    for layer in network:
        x = layer(x)
        if isinstance(layer, Kwta):
            patterns.append(x != 0)
    return torch.cat(patterns, dim=1)
