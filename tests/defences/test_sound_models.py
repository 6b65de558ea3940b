"""The lower bounds of the sound models hold, and leave an attack little room."""

import pytest
import torch

from defences.sound_models import SOUND, Sound, box, linear, linear_margins, noisy_linear, noisy_probability
from kwbench.randomness import seeded_globally
from kwbench.threat import ThreatModel
from support.plain_pgd import accuracy, descend
from support.small_models import first_images


@pytest.mark.parametrize("sound", SOUND, ids=lambda sound: sound.name)
def test_what_is_proved_stands_and_what_stands_is_mostly_proved(sound: Sound) -> None:
    batch = first_images(128)
    network, certified = sound.factory(), sound.certified(batch, sound.threat)
    noisy = sound.name.startswith("noisy")
    with seeded_globally(0):
        z = descend(network, batch.x, batch.y, sound.threat, steps=40, step_size=sound.threat.radius / 8, loss="margin")
        left = accuracy(network, z, batch.y, draws=200 if noisy else 1)
    if not noisy:
        assert bool((left >= certified).all())
    assert certified.mean() - 0.01 <= left.mean() <= certified.mean() + (0.01 if sound.exact else 0.12)
    assert certified.mean() > 0.4


@pytest.mark.parametrize("eps", ["0.05", "0.3"])
def test_the_least_margin_of_a_linear_model_is_met_at_a_corner_of_the_ball(eps: str) -> None:
    batch, network, threat = first_images(32), linear(), ThreatModel.of("linf", eps)
    low, high = box(batch.x, threat)
    margins = linear_margins(batch, threat)
    for j in range(10):
        worst = torch.where((network.weight[batch.y] > network.weight[j]).view(low.shape), low, high)
        logits = network(worst)
        found = logits.gather(1, batch.y.unsqueeze(1)).squeeze(1) - logits[:, j]
        other = batch.y != j
        torch.testing.assert_close(found[other], margins[other, j], rtol=0, atol=1e-4)


def test_the_noisy_model_is_right_as_often_as_the_integral_says() -> None:
    batch, nowhere = first_images(64), ThreatModel.of("linf", "0.0001")
    with seeded_globally(0):
        counted = accuracy(noisy_linear(), batch.x, batch.y, draws=2_000)
    torch.testing.assert_close(noisy_probability(linear_margins(batch, nowhere)).float(), counted, rtol=0, atol=0.05)
    assert ((counted > 0.05) & (counted < 0.95)).sum() > 10
