"""RayS: from labels alone it finds adversarial examples within the ball, and none outside."""

import pytest
import torch
from torch import Tensor, nn

from kwbench.attacks.rays import Rays
from kwbench.data import Batch
from kwbench.geometry import distance
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import Linear, Noisy, Quantised, broken, cnn, first_images, run, sharp, trained_cnn, wrapped


class _Labels(nn.Module):
    """One-hot outputs, of which neither losses nor gradients are informative."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(trained_cnn()(x).argmax(dim=1), 10).float() + 0 * x.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_finds_the_distance_to_a_plane_whose_nearest_point_is_a_corner(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    slope = torch.where(torch.rand(64, generator=generator) < 0.5, -1.0, 1.0)
    model = wrapped(Linear(torch.stack([-slope, slope]), torch.tensor([6.0, -6.0])), classes=2)
    x = 0.5 + 0.2 * (torch.rand((4, 1, 8, 8), generator=generator) - 0.5)
    batch = Batch(tuple(f"{row:032x}" for row in range(4)), tuple(range(4)), x, model.predict(x)[0])
    near = (x.flatten(1) @ slope - 6).abs() / (64 if norm == "linf" else 8)
    for row in range(2):
        for factor, expected in ((1.02, Status.BROKEN), (0.999, Status.HELD)):
            threat = ThreatModel.of(norm, f"{near[row] * factor:.6f}")
            (outcome,) = run("rays", {"queries": 800}, batch.take([row]), threat, model=model)
            assert outcome.status is expected


def test_it_breaks_models_with_and_without_hidden_gradients_equally_well() -> None:
    threat, batch = ThreatModel.of("linf", "0.15"), sharp(first_images(32))
    open_, hidden = (broken(run("rays", {"queries": 150}, batch, threat, model=model)) for model in (cnn(), wrapped(_Labels())))
    assert torch.equal(open_, hidden)
    assert open_.double().mean() > 0.5
    quantised = wrapped(Quantised(trained_cnn()))
    batch = sharp(batch, quantised)
    assert not broken(run("pgd", {"random_start": False}, batch, threat, model=quantised)).any()
    assert broken(run("rays", {"queries": 150}, batch, threat, model=quantised)).double().mean() > 0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_break_more_samples_and_each_costs_one_forward_pass(norm: str) -> None:
    threat, batch = ThreatModel.of(norm, {"linf": "0.1", "l2": "0.9"}[norm]), sharp(first_images(48))
    few, many = (run("rays", {"queries": queries}, batch, threat) for queries in (30, 600))
    assert bool((broken(many) | ~broken(few)).all())
    assert broken(many).sum() > broken(few).sum()
    for outcome in many:
        assert outcome.backwards == 0
        assert outcome.forwards == 600 if outcome.status is Status.HELD else outcome.forwards <= 600


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_its_proposals_lie_in_the_ball(norm: str) -> None:
    threat, batch = ThreatModel.of(norm, "0.05"), first_images(32)
    for queries in (1, 2, 7, 150):
        z = Rays(queries=queries)(cnn(), batch.x, batch.y, threat, SampleRandom(0, "test", batch.samples))
        assert distance(batch.x, z, threat.norm).max() <= threat.radius + 1e-6
        assert z.min() >= 0
        assert z.max() <= 1


def test_images_of_one_value_use_up_all_blocks_and_start_again() -> None:
    model = wrapped(Linear(torch.tensor([[1.0], [-1.0]]), torch.tensor([0.0, 1.0])), classes=2, shape=(1, 1, 1))
    x = torch.tensor([0.9, 0.2]).view(2, 1, 1, 1)
    y = model.predict(x)[0]
    rng = SampleRandom(0, "test", ("a", "b"))
    z = Rays(queries=40)(model, x, y, ThreatModel.of("linf", "0.35"), rng)
    assert (model.predict(z)[0] != y).tolist() == [False, True]


def test_the_majority_of_draws_decides_on_a_stochastic_model() -> None:
    model = wrapped(Noisy(trained_cnn(), 0.1), tile=24)
    model.stochastic = True
    batch, threat = sharp(first_images(24)), ThreatModel.of("linf", "0.15")
    outcomes = run("rays", {"queries": 60, "draws": 3}, batch, threat, model=model)
    assert broken(outcomes).double().mean() > 0.3
    assert max(outcome.forwards for outcome in outcomes) <= 180
