"""Small networks with fixed weights, and the digits that are attacked.

Nothing here is trained by gradient descent, whose rounding differs between processors and grows. The first layer holds random
multiples of 1/64, so that its sums over clean digits are exact; the last layer solves least squares in float64.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from kwbench.data import Batch
from kwbench.model import Model, Prediction
from kwbench.networks.activations import Kwta, StochasticLwta
from support.small_models import digits

# Samples of the test split under attack: their margins vary, and the ReLU network has the last two wrong.
ATTACKED = (0, 3, 6, 9, 14, 17, 25, 37)


def batch(indices: tuple[int, ...] = ATTACKED) -> Batch:
    """Some digits of the test split."""
    return digits().test.batch(indices)


@cache
def relu_network() -> nn.Module:
    """A convolution, ReLU and a linear layer."""
    return _solved(nn.ReLU)


@cache
def kwta_network() -> nn.Module:
    """The same with k-WTA, whose gradient misleads."""
    return _solved(lambda: Kwta("0.2"))


@cache
def stochastic_network() -> nn.Module:
    """The same with stochastic LWTA."""
    return _solved(lambda: StochasticLwta(2))


@cache
def normed_network() -> nn.Module:
    """The ReLU network with a batch norm after its convolution, which can be folded into it."""
    convolution, *rest = deepcopy(relu_network()).children()
    norm = nn.BatchNorm2d(8)
    fill(norm, seed=3)
    return nn.Sequential(convolution, norm, *rest).eval().requires_grad_(False)


def model(network: nn.Module, prediction: Prediction | None = None, tile: int = len(ATTACKED)) -> Model:
    """A network as attacks see it, its randomness measured."""
    torch.set_num_threads(1)
    wrapped = Model(deepcopy(network), name="golden", classes=10, shape=(1, 8, 8), prediction=prediction, tile=tile)
    wrapped.measure_randomness(batch().x)
    return wrapped


def numbers(*shape: int, seed: int) -> Tensor:
    """Standard normal float32 numbers; numpy never changes those of RandomState (NEP 19)."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def fill(module: nn.Module, seed: int) -> None:
    """Give every weight and running statistic of a module a fixed value of the usual size."""
    generator = np.random.RandomState(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.from_numpy(np.asarray(generator.standard_normal(tuple(tensor.shape)))).float()
            if tensor.dim() > 1:
                values *= (2 / tensor[0].numel()) ** 0.5
            elif name.endswith("running_var"):
                values = 1 + 0.1 * values.abs()
            else:
                values = 0.1 * values + (1 if name.endswith("weight") else 0)
            tensor.copy_(values)


def _solved(activation: Callable[[], nn.Module]) -> nn.Module:
    convolution = nn.Conv2d(1, 8, 3, padding=1)
    linear = nn.Linear(512, 10)
    network = nn.Sequential(convolution, activation(), nn.Flatten(), linear).eval().requires_grad_(False)
    convolution.weight.copy_((numbers(8, 1, 3, 3, seed=0) * 32).round() / 64)
    assert convolution.bias is not None
    convolution.bias.copy_((numbers(8, seed=1) * 4).round() / 64)
    train = digits().train.batch(range(len(digits().train)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = network[:3].double()(train.x.double()).numpy()
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    targets = np.eye(10)[train.y.numpy()] - 0.1
    solution = np.linalg.solve(features.T @ features + 20 * np.eye(513), features.T @ targets)
    # Rounding absorbs what is left of differences between linear algebra libraries.
    weights = torch.from_numpy(np.round(10 * solution * 1024) / 1024)
    linear.weight.copy_(weights[:512].T)
    linear.bias.copy_(weights[512])
    return network.float()
