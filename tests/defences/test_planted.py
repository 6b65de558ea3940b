"""A planted adversarial image is there, is alone, and is not for the picking."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from defences.planted import FACTORIES, SAMPLES, THREAT, inside, planted, random_search, relu_features
from kwbench.randomness import seeded_globally
from support.plain_pgd import accuracy, descend
from support.small_models import first_images


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_the_planted_image_alone_is_misread(factory: Callable[[], nn.Module]) -> None:
    batch, network = first_images(SAMPLES), factory()
    corners = planted(batch)
    assert float((corners - batch.x).abs().max()) <= THREAT.radius + 1e-6
    assert accuracy(network, batch.x, batch.y).all()
    assert not accuracy(network, corners, batch.y).any()
    for near in inside(batch)[:, ::37].unbind(1):
        assert float((near - batch.x).abs().max()) < THREAT.radius
        assert accuracy(network, near, batch.y).all()


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_random_search_finds_few(factory: Callable[[], nn.Module]) -> None:
    assert random_search(factory(), first_images(SAMPLES), queries=1_000).float().mean() <= 0.2


def test_balls_do_not_meet() -> None:
    images = first_images(SAMPLES).x.flatten(1)
    distances = torch.cdist(images, images, p=torch.inf).fill_diagonal_(1.0)
    assert float(distances.min()) > 2 * THREAT.radius


def test_plain_pgd_finds_what_is_planted_where_nothing_hides_the_gradient() -> None:
    batch, network = first_images(SAMPLES), relu_features()
    with seeded_globally(0):
        z = descend(network, batch.x, batch.y, THREAT, steps=100, step_size=THREAT.radius / 10, loss="margin")
    assert accuracy(network, z, batch.y).mean() <= 0.05
