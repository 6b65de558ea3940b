"""Local search finds adversarial examples in corners between jumps, and none that do not exist."""

from typing import Any

import pytest
import torch

from defences import exact_truth
from kwbench.attacks import build_attack
from kwbench.attacks.local_search import LocalSearch
from kwbench.errors import UsageError
from kwbench.geometry import distance
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import Noisy, broken, cnn, first_images, run, sharp, trained_cnn, wrapped


def test_on_a_wide_k_wta_layer_it_breaks_samples_that_auto_pgd_misses_and_no_robust_ones() -> None:
    model = wrapped(exact_truth.kwta_wide())
    batch = first_images(exact_truth.SAMPLES)
    threat = ThreatModel.of("linf", exact_truth.SIZES["kwta_wide"].eps)
    stands = torch.tensor(exact_truth.truths("kwta_wide"))
    right = model.predict(batch.x)[0] == batch.y
    there = right & ~stands
    plain = broken(run("apgd", {"targets": 9, "loss": "margin", "steps": 60}, batch, threat, model=model))
    fallen = broken(run("local-search", {}, batch, threat, model=model))
    assert not (fallen & stands).any()
    assert (there & ~fallen).sum() <= 1
    assert (there & ~plain).sum() >= 4


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_flips_break_more_samples_than_the_climb_alone(norm: str) -> None:
    model, batch = cnn(), sharp(first_images(48))
    threat = ThreatModel.of(norm, {"linf": "0.15", "l2": "0.4"}[norm])
    short = {"steps": 1, "restarts": 1, "targets": 2}
    climb, both = (broken(run("local-search", {**short, "flips": flips}, batch, threat, model=model)) for flips in (0, 150))
    assert bool((both | ~climb).all())
    assert both.sum() > climb.sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("noisy", [False, True])
def test_every_proposal_lies_in_the_ball_and_the_pixel_range(noisy: bool, norm: str) -> None:
    model = wrapped(Noisy(trained_cnn(), 0.1)) if noisy else cnn()
    model.stochastic = noisy
    batch, threat = first_images(8), ThreatModel.of(norm, {"linf": "0.05", "l2": "0.4"}[norm])
    attack = LocalSearch(steps=5, flips=20, restarts=2, targets=3, draws=2)
    z = attack(model, batch.x, batch.y, threat, SampleRandom(0, "test", batch.samples))
    assert bool((distance(batch.x, z, threat.norm) <= threat.radius + 1e-6).all())
    assert z.min() >= 0
    assert z.max() <= 1


def test_targets_are_limited_to_the_other_classes_and_more_restarts_break_no_fewer_samples() -> None:
    batch, threat = sharp(first_images(32)), ThreatModel.of("linf", "0.08")
    one, two = (
        broken(run("local-search", {"steps": 5, "flips": 20, "targets": 40, "restarts": restarts}, batch, threat))
        for restarts in (1, 2)
    )
    assert bool((two | ~one).all())


def test_without_success_it_costs_exactly_the_declared_passes() -> None:
    batch, threat = sharp(first_images(4)), ThreatModel.of("linf", "0.001")
    attack = LocalSearch(steps=4, flips=10, restarts=2, targets=3, finalists=2)
    parameters = {"steps": 4, "flips": 10, "restarts": 2, "targets": 3, "finalists": 2}
    outcomes = run("local-search", parameters, batch, threat)
    assert {outcome.status for outcome in outcomes} == {Status.HELD}
    # One forward pass to choose targets; for each target a forward and a backward pass a step, and a last forward pass.
    spent = 1 + 2 * (3 * (2 * 4 + 1) + 2 * 10)
    assert {outcome.forwards + outcome.backwards for outcome in outcomes} == {spent}
    assert spent <= attack.passes(stochastic=False)
    assert attack.doubled(2).restarts == 8


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"flips": -1}, "flips must not be negative"),
        ({"softness": [0.1, 0.0]}, "softness must be a list of positive numbers"),
        ({"losses": []}, "losses must name at least one"),
        ({"losses": ["hinge"]}, "losses"),
    ],
)
def test_settings_without_a_search_are_refused(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_attack("local-search", parameters)
