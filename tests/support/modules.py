"""Modules that are random, or whose batch sizes matter or are recorded."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.small_models import trained_cnn


class Deep(nn.Module):
    """Convolutions wide enough for batch sizes to change the last bits."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = activation or nn.ReLU()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn((48, 1, 3, 3), generator=generator) / 3)
        self.second = nn.Parameter(torch.randn((48, 48, 3, 3), generator=generator) / 20)
        self.last = nn.Parameter(torch.randn((10, 48 * 64), generator=generator) / 50)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(F.conv2d(self.activation(F.conv2d(x, self.first, padding=1)), self.second, padding=1))
        return F.linear(hidden.flatten(1), self.last)


def input_gradient(model: Any, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).logsumexp(dim=1).sum(), leaf)
    return gradient


class Watched(nn.Module):
    """Records the size of every batch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.sizes = module, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits: Tensor = self.module(x)
        return logits


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        noise = torch.from_numpy(np.random.default_rng(np.random.randint(2**31)).normal(size=x.shape)).float()
        logits: Tensor = trained_cnn()(x + 0.1 * noise)
        return logits


class PythonNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = trained_cnn()(x + 0.1 * random.random())
        return logits


class Dropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = trained_cnn()(F.dropout(x, 0.2, training=True))
        return logits


class Counting(nn.Module):
    """Deterministic, but for a state that changes from call to call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = trained_cnn()(x) * self.calls
        return logits
