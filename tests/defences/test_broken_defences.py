"""The broken defences are what they are said to be: sharp, flattered by plain PGD, and truly not robust."""

import pytest
import torch

from defences.broken_defences import DEFENCES, EPS, Defence
from kwbench.randomness import seeded_globally
from kwbench.threat import ThreatModel
from support.plain_pgd import accuracy, descend
from support.small_models import first_images

THREAT = ThreatModel.of("linf", EPS)


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_a_broken_defence_reads_digits_flatters_and_falls(defence: Defence) -> None:
    batch = first_images(64)
    draws = 50 if defence.kind == "stochastic" else 1
    network = defence.factory()
    with seeded_globally(0):
        assert accuracy(network, batch.x, batch.y, draws).mean() > 0.8
        if defence.flattery == 1:
            assert not network(batch.x.clone().requires_grad_()).requires_grad
        else:
            z = descend(network, batch.x, batch.y, THREAT, steps=40, step_size=THREAT.radius / 30)
            assert accuracy(network, z, batch.y, draws).mean() >= defence.flattery
        undefended, several = defence.undefended(), 10 if "random" in defence.undefended.__name__ else 1
        z = descend(undefended, batch.x, batch.y, THREAT, steps=40, step_size=THREAT.radius / 8, loss="margin", draws=several)
        assert accuracy(network, z, batch.y, draws).mean() <= defence.truth


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_a_factory_always_gives_the_same_weights(defence: Defence) -> None:
    one = defence.factory()
    torch.manual_seed(5)
    two = defence.factory.__wrapped__() if hasattr(defence.factory, "__wrapped__") else defence.factory()
    for first, second in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
