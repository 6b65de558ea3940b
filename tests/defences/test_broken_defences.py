"""The defences are what they are said to be: sharp, flattered by plain PGD, and truly not robust."""

import pytest

from defences.broken_defences import EXPECTATIONS, Expectation
from defences.zoo.defence import EPS
from kwbench.randomness import seeded_globally
from kwbench.threat import ThreatModel
from support.plain_pgd import accuracy, descend
from support.small_models import first_images

THREAT = ThreatModel.of("linf", EPS)


@pytest.mark.parametrize("expected", EXPECTATIONS, ids=lambda expected: expected.name)
def test_a_broken_defence_reads_digits_flatters_and_falls(expected: Expectation) -> None:
    defence, batch = expected.defence, first_images(64)
    draws = 50 if defence.draws > 1 else 1
    network = defence.factory()
    with seeded_globally(0):
        assert accuracy(network, batch.x, batch.y, draws).mean() > 0.8
        if expected.flattery == 1:
            assert not network(batch.x.clone().requires_grad_()).requires_grad
        else:
            z = descend(network, batch.x, batch.y, THREAT, steps=40, step_size=THREAT.radius / 30)
            assert accuracy(network, z, batch.y, draws).mean() >= expected.flattery
        several = 10 if defence.draws > 1 else 1
        z = descend(
            defence.substitute(), batch.x, batch.y, THREAT, steps=40, step_size=THREAT.radius / 8, loss="margin", draws=several
        )
        assert accuracy(network, z, batch.y, draws).mean() <= expected.truth
