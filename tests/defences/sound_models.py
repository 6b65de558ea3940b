"""Models on digits whose robustness is real: each has a proved lower bound, below which no attack can push its accuracy.

Each factory is a model for the command line, with the tests on the path:
`PYTHONPATH=tests kwbench evaluate tests/defences/sound_models.py:linear --suite strong`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.data import Batch
from kwbench.geometry import project
from kwbench.randomness import seeded_globally
from kwbench.threat import ThreatModel
from support.small_models import Linear, digits

FILE = Path(__file__).resolve()
# Standard deviation of the noise on each logit of `noisy_linear`.
SIGMA = 0.5


@dataclass(frozen=True)
class Sound:
    """A model with a certificate, and the verdict that its evaluation deserves.

    Attributes:
        factory: returns the model.
        certified: returns, for each sample (b,), a lower bound on the probability that it is classified correctly in the whole
            ball.
        eps: radius of the ball in linf.
        exact: whether the bound is tight.
        verdict: the expected verdict. Attacks with exact gradients succeed wherever possible, so results are confirmed.
    """

    factory: Callable[[], nn.Module]
    certified: Callable[[Batch, ThreatModel], Tensor]
    eps: str
    exact: bool
    verdict: str = "confirmed"

    @property
    def name(self) -> str:
        return self.factory.__name__

    @property
    def model(self) -> str:
        """The model as the command line takes it."""
        return f"{FILE}:{self.name}"

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel.of("linf", self.eps)


def box(x: Tensor, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """Return the lower and upper bounds (b, ...) on each pixel in a linf ball within the pixel range."""
    return (x - threat.radius).clamp(0, 1), (x + threat.radius).clamp(0, 1)


def through_linear(low: Tensor, high: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exact range of each output of a linear layer over a box (b, n), by interval arithmetic."""
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    return low @ up.T + high @ down.T + bias, high @ up.T + low @ down.T + bias


def least_margins(low: Tensor, high: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """Return the minimum of z_y - z_j over a box (b, n) for every class j, as (b, k); infinity at j = y."""
    differences = weight[y].unsqueeze(1) - weight
    offsets = bias[y].unsqueeze(1) - bias
    least = (differences.clamp(min=0) @ low.unsqueeze(2) + differences.clamp(max=0) @ high.unsqueeze(2)).squeeze(2) + offsets
    return least.scatter(1, y.unsqueeze(1), torch.inf)


def mlp(activation: Callable[[], nn.Module], hidden: int = 64) -> nn.Sequential:
    """Return an untrained network with one hidden layer, always from the same seed."""
    with seeded_globally(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), activation(), nn.Linear(hidden, 10))


def adversarially_fitted(network: nn.Module, *, eps: float, epochs: int, steps: int = 5) -> nn.Module:
    """Train a network by PGD adversarial training (Madry et al. 2018) and freeze it. The radius grows for half the epochs."""
    torch.set_num_threads(1)
    train = digits().train.batch(range(len(digits().train)))
    with seeded_globally(1):
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for epoch in range(epochs):
            threat = ThreatModel.of("linf", eps * min(1.0, (epoch + 1) / (epochs / 2)))
            radius = threat.radius
            for rows in torch.randperm(len(train)).split(64):  # type: ignore[no-untyped-call]
                x, y = train.x[rows], train.y[rows]
                z = (x + radius * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
                for _ in range(steps):
                    z.requires_grad_()
                    (gradient,) = torch.autograd.grad(F.cross_entropy(network(z), y), z)
                    z = project(z.detach() + 2.5 * radius / steps * gradient.sign(), x, threat)
                optimizer.zero_grad()
                F.cross_entropy(network(z), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return network.eval().requires_grad_(False)


def relaxation_bound(network: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
    """Return 1 for each sample that a linear relaxation proves correct in the whole ball, else 0 (CROWN, arXiv:1811.00866).

    The activation must be convex: over the range of a unit it lies below its chord and above its tangents.
    """
    _, first, activation, second = network.children()
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    low, high = (side.flatten(1).double() for side in box(batch.x, threat))
    weight, bias = first.weight.double(), first.bias.double()
    least, most = through_linear(low, high, weight, bias)
    bottom, top = activation(least), activation(most)
    chord = (top - bottom) / (most - least).clamp(min=1e-12)
    middle = ((least + most) / 2).requires_grad_()
    touch = activation(middle)
    (tangent,) = torch.autograd.grad(touch.sum(), middle)
    touch, middle = touch.detach(), middle.detach()
    proved = torch.ones(len(batch), dtype=torch.bool)
    for j in range(10):
        # A linear function of the pixels that bounds z_y - z_j from below.
        towards = (second.weight[batch.y] - second.weight[j]).double()
        slope = torch.where(towards > 0, tangent, chord) * towards
        at = torch.where(towards > 0, touch - tangent * middle, bottom - chord * least) * towards
        pixels = slope @ weight
        offset = at.sum(dim=1) + slope @ bias + (second.bias[batch.y] - second.bias[j])
        bound = (pixels.clamp(min=0) * low + pixels.clamp(max=0) * high).sum(dim=1) + offset
        # Float32 logits differ from these in the sixth digit.
        proved &= (bound > 1e-4) | (batch.y == j)
    return proved.float()


@cache
def relu() -> nn.Module:
    return adversarially_fitted(mlp(nn.ReLU), eps=0.15, epochs=20)


@cache
def softplus() -> nn.Module:
    return adversarially_fitted(mlp(lambda: nn.Softplus(beta=5)), eps=0.15, epochs=20)


@cache
def linear() -> Linear:
    """Logistic regression, trained adversarially."""
    network = adversarially_fitted(nn.Sequential(nn.Flatten(), _linear_layer()), eps=0.1, epochs=10, steps=1)
    return Linear(network.get_parameter("1.weight").detach(), network.get_parameter("1.bias").detach())


def _linear_layer() -> nn.Linear:
    with seeded_globally(0):
        return nn.Linear(64, 10)


def linear_margins(batch: Batch, threat: ThreatModel) -> Tensor:
    """Return the minimum margin over each other class in the ball, as (b, 10).

    It is the margin minus eps * ||w_y - w_j||_1, or a little more where the pixel range cuts the ball.
    """
    low, high = (side.flatten(1) for side in box(batch.x, threat))
    return least_margins(low, high, linear().weight, linear().bias, batch.y)


class NoisyLogits(nn.Module):
    """A network with Gaussian noise on each logit, drawn anew in every pass."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits + self.sigma * torch.randn_like(logits)


def noisy_linear() -> nn.Module:
    """The linear model with noisy logits; an attack lowers only the margins of the linear model."""
    return NoisyLogits(linear(), SIGMA)


def noisy_probability(margins: Tensor) -> Tensor:
    """Return P(correct) for noiseless margins (b, 10) over the other classes; infinity at the true class.

    Given the noise of the true logit, the other classes are independent; Gauss-Hermite quadrature integrates over that noise.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    normal = torch.distributions.Normal(0.0, 1.0)
    given = normal.cdf(margins.double().unsqueeze(2) / SIGMA + torch.from_numpy(nodes)).prod(dim=1)  # type: ignore[no-untyped-call]
    probability: Tensor = given @ torch.from_numpy(weights / weights.sum())
    return probability


SOUND = (
    Sound(
        linear,
        lambda batch, threat: (linear_margins(batch, threat).amin(dim=1) > 0).float(),
        eps="0.1",
        exact=True,
    ),
    # The probability rises with every margin, and each minimum margin is a lower bound in the ball.
    Sound(noisy_linear, lambda batch, threat: noisy_probability(linear_margins(batch, threat)), eps="0.1", exact=False),
    Sound(relu, lambda batch, threat: relaxation_bound(relu(), batch, threat), eps="0.1", exact=False),
    Sound(softplus, lambda batch, threat: relaxation_bound(softplus(), batch, threat), eps="0.1", exact=False),
)
