"""A model that answers otherwise on the sensor's grid is attacked there."""

import pytest
import torch
from torch import Tensor, nn

from kwbench.attacks.grid import Grid
from kwbench.attacks.search.pixel_grid import grids_that_matter, levels_of, on_grid
from kwbench.judge import judge, judge_clean
from kwbench.threat import ThreatModel
from support.small_models import broken, cnn, first_images, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.2")


class OnGrid(nn.Module):
    """A network for images on a grid; anything else gets the class of the nearest stored image."""

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network, self.levels, self.stored = network, levels, first_images(32)

    def forward(self, x: Tensor) -> Tensor:
        off = ((x * self.levels).round() / self.levels - x).abs().flatten(1).amax(dim=1) > 1e-6
        nearest = torch.cdist(x.flatten(1), self.stored.x.flatten(1), p=torch.inf).argmin(dim=1)
        return torch.where(off[:, None], 9.0 * nn.functional.one_hot(self.stored.y[nearest], 10), self.network(x))


def test_a_model_that_differs_on_the_grid_falls_there() -> None:
    batch = first_images(16)
    victim = wrapped(OnGrid(trained_cnn(), 16))
    assert grids_that_matter(victim, batch.x, LINF)[0] == 16
    attack = Grid(steps=10, targets=3, levels=(16,))
    outcomes = judge(victim, attack, "grid", batch, LINF, 0, judge_clean(victim, batch, 0))
    assert broken(outcomes).float().mean() > 0.8


def test_ordinary_networks_are_not_attacked_on_a_grid() -> None:
    assert grids_that_matter(cnn(), first_images(16).x, LINF) == ()


@pytest.mark.parametrize("threat", [LINF, ThreatModel.of("l2", "1")], ids=lambda threat: threat.norm)
@pytest.mark.parametrize("levels", [16, 255])
def test_rounded_images_lie_on_the_grid_and_in_the_ball(threat: ThreatModel, levels: int) -> None:
    x = (first_images(8).x * levels).round() / levels
    shift = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    shift = shift * (threat.radius / (shift.abs().amax() if threat.norm == "linf" else shift.flatten(1).norm(dim=1).max()))
    z = on_grid(x + shift, x, threat, levels)
    torch.testing.assert_close((z * levels).round() / levels, z, rtol=0, atol=1e-6)
    assert bool(((z - x).flatten(1).norm(p=torch.inf if threat.norm == "linf" else 2, dim=1) <= threat.radius + 1e-6).all())
    assert not torch.equal(z, x)


def test_the_coarsest_grid_of_images_is_found() -> None:
    assert levels_of(first_images(8).x) == (16, 255)
    assert levels_of(torch.rand(2, 1, 4, 4)) == (255,)
