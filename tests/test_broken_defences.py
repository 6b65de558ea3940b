"""The broken defences are what they are said to be: sharp, flattered by plain PGD, and truly not robust."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from broken_defences import DEFENCES, EPS, Defence
from kwbench.attacks.losses import margin
from kwbench.geometry import project
from kwbench.randomness import seeded_globally
from kwbench.threat import ThreatModel
from small_models import first_images

THREAT = ThreatModel.of("linf", EPS)


def accuracy(network: nn.Module, x: Tensor, y: Tensor, draws: int = 1) -> float:
    with torch.no_grad():
        return torch.stack([network(x).argmax(dim=1) == y for _ in range(draws)]).float().mean().item()


def descend(network: nn.Module, x: Tensor, y: Tensor, *, steps: int, step_size: float, plain: bool, draws: int = 1) -> Tensor:
    """The last iterate of PGD by autograd; `plain` is torch's cross-entropy, otherwise it is the margin."""
    z = (x + THREAT.radius * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        z = z.detach().requires_grad_()
        answers = [network(z) for _ in range(draws)]
        losses = [F.cross_entropy(each, y, reduction="sum") if plain else margin(each, y).sum() for each in answers]
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), z)
        z = project(z.detach() + step_size * gradient.sign(), x, THREAT)
    return z


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_a_broken_defence_reads_digits_flatters_and_falls(defence: Defence) -> None:
    batch = first_images(64)
    draws = 50 if defence.kind == "stochastic" else 1
    network = defence.factory()
    with seeded_globally(0):
        assert accuracy(network, batch.x, batch.y, draws) > 0.8
        if defence.flattery == 1:
            assert not network(batch.x.clone().requires_grad_()).requires_grad
        else:
            z = descend(network, batch.x, batch.y, steps=40, step_size=THREAT.radius / 30, plain=True)
            assert accuracy(network, z, batch.y, draws) >= defence.flattery
        undefended, several = defence.undefended(), 10 if "random" in defence.undefended.__name__ else 1
        z = descend(undefended, batch.x, batch.y, steps=40, step_size=THREAT.radius / 8, plain=False, draws=several)
        assert accuracy(network, z, batch.y, draws) <= defence.truth


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_a_factory_always_gives_the_same_weights(defence: Defence) -> None:
    one = defence.factory()
    torch.manual_seed(5)
    two = defence.factory.__wrapped__() if hasattr(defence.factory, "__wrapped__") else defence.factory()
    for first, second in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
