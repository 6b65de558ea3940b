"""Classifiers of which every sample provably has an adversarial image: the active test of an attack.

Zimmermann et al. 2022, "Increasing Confidence in Adversarial Robustness Evaluations" (arXiv:2206.13991). The features are those
of a network as it is; on them, image by image, a linear read-out is fitted that tells 999 noisy images strictly inside the ball
from one planted on its boundary, which goes to another class. An attack that finds fewer than 95 of 100 does not find what is
there; random search, which finds at most 20, shows that it is not there for the picking.

Each factory is a model of its own: `kwbench evaluate tests/planted.py:relu_features --suite strong --eps 0.15 --n 40`. It
answers only near the first 40 test images.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from defences.broken_defences import cnn, fitted, rounded_features
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
    """Two classes near each image of a batch: its own, and the next one where the image's read-out is above 0.

    `weight` (n, d) and `offset` (n,) are the read-outs on `features`, which takes images to (b, d).
    Which image an input belongs to is plain: the balls do not meet.
    """

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
    """Noisy images strictly inside each ball, every other one close to a corner, (n, 999, c, h, w)."""
    noise = SampleRandom(0, "inside", batch.samples).uniform("noise", (INSIDE, *batch.x.shape[1:]), -1, 1)
    noise[:, ::2] = noise[:, ::2].sign()
    return (batch.x.unsqueeze(1) + 0.95 * THREAT.radius * noise).clamp(0, 1)


def planted(batch: Batch) -> Tensor:
    """One image on the boundary of each ball, a corner of it drawn at random, (n, c, h, w)."""
    noise = SampleRandom(0, "planted", batch.samples).uniform("noise", batch.x.shape[1:], -1, 1)
    return (batch.x + THREAT.radius * noise.sign()).clamp(0, 1)


def with_planted(features: nn.Module, batch: Batch) -> Planted:
    """A classifier on these features with one planted adversarial image for each of the batch."""
    weights, offsets = [], []
    with torch.no_grad():
        for near, corner in zip(inside(batch), planted(batch), strict=True):
            h, at = features(near).double(), features(corner.unsqueeze(0)).double()[0]
            centre = h.mean(dim=0)
            spread = torch.cov(h.T)
            # Fisher's discriminant, ridged: between 999 and 1 it is what separates best.
            ridge = 0.1 * spread.diagonal().mean() * torch.eye(len(spread), dtype=torch.float64)
            weight = torch.linalg.solve(spread + ridge, at - centre)
            last, found = (h @ weight).max(), at @ weight
            if found <= last:
                raise ArithmeticError("the planted image cannot be told from those inside")
            scale = 10 / (found - (h @ weight).mean())
            weights.append(weight * scale)
            offsets.append(-(last + 0.6 * (found - last)) * scale)
    return Planted(features, batch, torch.stack(weights).float(), torch.stack(offsets).float()).eval().requires_grad_(False)


def random_search(network: nn.Module, batch: Batch, queries: int) -> Tensor:
    """Whether any of so many random corners of its ball breaks a sample, (n,)."""
    broken = torch.zeros(len(batch), dtype=torch.bool)
    draws = SampleRandom(1, "random search", batch.samples)
    with torch.no_grad():
        for query in range(queries):
            noise = draws.uniform(query, batch.x.shape[1:], -1, 1)
            broken |= network((batch.x + THREAT.radius * noise.sign()).clamp(0, 1)).argmax(dim=1) != batch.y
    return broken


@cache
def relu_features() -> nn.Module:
    """An ordinary network, which hides nothing."""
    return with_planted(trained_cnn()[:-1], first_images(SAMPLES))


@cache
def grid_features() -> nn.Module:
    """Features on a grid, whose gradients are all zero."""
    return with_planted(rounded_features()[:-1], first_images(SAMPLES))


@cache
def kwta_features() -> nn.Module:
    """Two layers of k-WTA, a tenth of whose units win."""
    return with_planted(fitted(cnn(lambda: Kwta("0.1")))[:-1], first_images(SAMPLES))


FACTORIES: tuple[Callable[[], nn.Module], ...] = (relu_features, grid_features, kwta_features)
