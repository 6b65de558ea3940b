"""Classifiers with a planted adversarial example for every sample: a test of attacks that has a known answer.

Zimmermann et al. 2022, "Increasing Confidence in Adversarial Robustness Evaluations" (arXiv:2206.13991). A linear read-out on a
network's features is fitted for each image. It separates 999 noisy images strictly inside the ball from one planted on the
boundary, which gets another class. An attack that finds fewer than 95 of 100 planted images is too weak. Random search finds at
most 20 of 100, so that they are not easy to find.

Each factory is a model for the command line, with the tests on the path. Its logits are meaningful only near the first 40 test
images: `PYTHONPATH=tests kwbench evaluate tests/defences/planted.py:relu_features --suite strong --eps 0.15 --n 40`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from defences.zoo.activations import rounded_features
from defences.zoo.building import cnn, fitted
from kwbench.data import Batch
from kwbench.networks.activations import Kwta
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import first_images, trained_cnn

FILE = Path(__file__).resolve()
THREAT = ThreatModel.of("linf", "0.15")
SAMPLES = 40
INSIDE = 999


class Planted(nn.Module):
    """A classifier of two classes near each image of a batch: its own, and the next one if the image's read-out is above 0.

    `weight` (n, d) and `offset` (n,) are the read-outs of `features`, which maps images to (b, d).
    The balls do not meet, so the nearest image is the one that an input belongs to.
    """

    images: Tensor
    labels: Tensor
    weight: Tensor
    offset: Tensor

    def __init__(self, features: nn.Module, batch: Batch, weight: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.features = features
        for name, values in (("images", batch.x.flatten(1)), ("labels", batch.y), ("weight", weight), ("offset", offset)):
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            nearest = torch.cdist(x.detach().flatten(1), self.images, p=torch.inf).argmin(dim=1)
        score = (self.features(x) * self.weight[nearest]).sum(dim=1) + self.offset[nearest]
        own = self.labels[nearest].unsqueeze(1)
        logits = torch.full((len(x), 10), -10.0, device=x.device)
        return logits.scatter(1, own, -score.unsqueeze(1)).scatter(1, (own + 1) % 10, score.unsqueeze(1))


def inside(batch: Batch) -> Tensor:
    """Return noisy images (n, 999, c, h, w) strictly inside each ball, every other one close to a corner."""
    noise = SampleRandom(0, "inside", batch.samples).uniform("noise", (INSIDE, *batch.x.shape[1:]), -1, 1)
    noise[:, ::2] = noise[:, ::2].sign()
    return (batch.x.unsqueeze(1) + 0.95 * THREAT.radius * noise).clamp(0, 1)


def planted(batch: Batch) -> Tensor:
    """Return a random corner of each ball, as (n, c, h, w)."""
    noise = SampleRandom(0, "planted", batch.samples).uniform("noise", batch.x.shape[1:], -1, 1)
    return (batch.x + THREAT.radius * noise.sign()).clamp(0, 1)


def with_planted(features: nn.Module, batch: Batch) -> Planted:
    """Return a classifier on these features with a planted adversarial example for each sample of the batch."""
    weights, offsets = [], []
    with torch.no_grad():
        for near, corner in zip(inside(batch), planted(batch), strict=True):
            h, at = features(near).double(), features(corner.unsqueeze(0)).double()[0]
            centre = h.mean(dim=0)
            spread = torch.cov(h.T)
            # Fisher's discriminant with a ridge separates 999 images from 1 best.
            ridge = 0.1 * spread.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
            weight = torch.linalg.solve(spread + ridge, at - centre)
            highest_inside, score = (h @ weight).max(), at @ weight
            if score <= highest_inside:
                raise ArithmeticError("the planted image cannot be separated from those inside")
            scale = 10 / (score - (h @ weight).mean())
            weights.append(weight * scale)
            offsets.append(-(highest_inside + 0.6 * (score - highest_inside)) * scale)
    return Planted(features, batch, torch.stack(weights).float(), torch.stack(offsets).float()).eval().requires_grad_(False)


def random_search(network: nn.Module, batch: Batch, queries: int) -> Tensor:
    """Return which samples (n,) any of `queries` random corners of their balls breaks."""
    broken = torch.zeros(len(batch), dtype=torch.bool)
    draws = SampleRandom(1, "random search", batch.samples)
    with torch.no_grad():
        for query in range(queries):
            noise = draws.uniform(query, batch.x.shape[1:], -1, 1)
            broken |= network((batch.x + THREAT.radius * noise.sign()).clamp(0, 1)).argmax(dim=1) != batch.y
    return broken


def without_last_layer(network: nn.Module) -> nn.Sequential:
    """Return the features of a sequential network: everything before its last layer."""
    return nn.Sequential(*list(network.children())[:-1])


@cache
def relu_features() -> nn.Module:
    """Features of the trained CNN, whose gradients are exact."""
    return with_planted(without_last_layer(trained_cnn()), first_images(SAMPLES))


@cache
def grid_features() -> nn.Module:
    """Rounded features, whose gradients are all zero."""
    return with_planted(without_last_layer(rounded_features()), first_images(SAMPLES))


@cache
def kwta_features() -> nn.Module:
    """Features of two k-WTA layers in which a tenth of the units win."""
    return with_planted(without_last_layer(fitted(cnn(lambda: Kwta("0.1")))), first_images(SAMPLES))


FACTORIES: tuple[Callable[[], nn.Module], ...] = (relu_features, grid_features, kwta_features)
