"""The strong suite breaks whatever AutoAttack breaks on public networks, image by image.

The networks are CNN-A of Dathathri et al. 2020 (arXiv:2010.11645). The images are those that Auto-PGD with cross-entropy leaves
and AutoAttack breaks at seed 0, of the 200 that the verification literature uses. To keep this quick, AutoAttack itself attacks
only the first of each network.
"""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import kwbench
from conftest import shared

IMAGES = {
    "adv4": (132, 23, 148, 172, 187, 199),
    "mix": (48, 154, 158, 159, 164),
    "mix4": (194, 21, 92, 167, 183),
}


class Normalised(nn.Module):
    """A network of normalised images."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.4914, 0.4824, 0.4467]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, 10) of pixels (b, 3, 32, 32) in [0, 1]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def cnn_a(name: str) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    network.load_state_dict(load_file(shared(f"hard/cifar-cnn-a-{name}.safetensors")))
    return Normalised(network).eval()


@pytest.mark.parametrize("name", ["adv4", *(pytest.param(name, marks=pytest.mark.trial) for name in ("mix", "mix4"))])
def test_nothing_that_autoattack_breaks_still_stands(name: str) -> None:
    network, rows = cnn_a(name), list(IMAGES[name])
    with np.load(shared("hard/cifar-sdp-200.npz")) as arrays:
        x, y = torch.from_numpy(arrays["x_test"][rows]).float() / 255, torch.from_numpy(arrays["y_test"][rows])

    def robust_accuracy(first: int, **options: Any) -> float:
        result = kwbench.evaluate(network, x[:first], y[:first], norm="linf", eps="2/255", seed=0, threads=1, **options)
        assert result.a_std is not None
        assert result.a_rob is not None
        assert result.a_std.value == 1.0
        return result.a_rob.value

    assert robust_accuracy(1, attacks="autoattack") == 0.0
    assert robust_accuracy(len(x), suite="strong", parameters={"complete-search.effort": 0}) == 0.0
