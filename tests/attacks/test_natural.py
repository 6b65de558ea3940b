"""Natural perturbations: as large as declared, one draw an image, and equal to torchvision's where it has them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kwbench.attacks import build_attack
from kwbench.errors import UsageError
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from kwbench.torchvision_schemas import import_torchvision
from support.small_models import cnn, first_images, run

EVERYWHERE = ThreatModel.of("linf", "1")


def drawn(name: str, x: Tensor, **parameters: Any) -> Tensor:
    rng = SampleRandom(0, name, tuple(f"{row:032x}" for row in range(len(x))))
    y = torch.zeros(len(x), dtype=torch.long)
    return build_attack(name, parameters)(cnn(), x, y, EVERYWHERE, rng)


def colours(n: int, side: int = 11) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_noise_has_its_declared_deviation_and_stays_in_the_pixel_range() -> None:
    grey = torch.full((64, 3, 16, 16), 0.5)
    noise = drawn("gaussian-blind", grey, std=0.1) - 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    black = drawn("gaussian-blind", torch.zeros_like(grey), std=0.1)
    assert black.min() == 0


def test_an_image_moves_by_whole_pixels_in_every_direction_up_to_the_limit() -> None:
    dot = torch.zeros(4000, 1, 11, 11)
    dot[:, :, 5, 5] = 1
    places = drawn("translation", dot, pixels=2).flatten(1).argmax(dim=1)
    counts = torch.bincount(places, minlength=121).view(11, 11)
    assert counts[3:8, 3:8].sum() == 4000
    assert counts[3:8, 3:8].min() > 0.7 * 4000 / 25
    ones = drawn("translation", torch.ones(50, 1, 8, 8), pixels=5)
    assert set(ones.unique().tolist()) == {0.0, 1.0}  # type: ignore[no-untyped-call]


def test_rotation_agrees_with_torchvision() -> None:
    functional = import_torchvision().transforms.functional
    x = colours(12, 16)
    rng = SampleRandom(0, "rotation", tuple(f"{row:032x}" for row in range(len(x))))
    angles = rng.uniform("angle", (), -30, 30).tolist()
    rotated = drawn("rotation", x, degrees=30.0)
    expected = torch.stack([functional.rotate(image, angle) for image, angle in zip(x, angles, strict=True)])
    # Positions half way between two pixels may be rounded either way.
    assert (rotated == expected).float().mean() > 0.99
    assert (drawn("rotation", x, degrees=0.01) == x).all()
    assert len({round(angle, 3) for angle in angles}) == 12


def test_colour_jitter_applies_torchvisions_three_adjustments_in_one_of_six_orders() -> None:
    from itertools import permutations

    functional = import_torchvision().transforms.functional
    x = colours(24)
    rng = SampleRandom(0, "colour-jitter", tuple(f"{row:032x}" for row in range(len(x))))
    factors = rng.uniform("factors", (3,), 0.6, 1.4)
    jittered = drawn("colour-jitter", x, strength=0.4)
    kinds = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    seen = set()
    for image, z, factor in zip(x, jittered, factors.tolist(), strict=True):
        matches = []
        for order in permutations(range(3)):
            wanted = image
            for kind in order:
                wanted = kinds[kind](wanted, factor[kind])
            if torch.allclose(z, wanted, atol=1e-3):
                matches.append(order)
        assert matches
        seen.update(matches)
    assert len(seen) == 6


def test_grey_images_have_no_saturation_to_change() -> None:
    flat = torch.full((40, 1, 6, 6), 0.4)
    factors = SampleRandom(0, "colour-jitter", tuple(f"{row:032x}" for row in range(40))).uniform("factors", (3,), 0.6, 1.4)
    # A constant image has no contrast.
    assert torch.allclose(drawn("colour-jitter", flat, strength=0.4), flat * factors[:, :1, None, None])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gaussian-blind", {"std": 0.0}),
        ("translation", {"pixels": 0}),
        ("rotation", {"degrees": 181.0}),
        ("colour-jitter", {"strength": 1.5}),
    ],
)
def test_impossible_strengths_are_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must"):
        build_attack(name, parameters)


def test_perturbations_outside_a_smaller_ball_are_no_success() -> None:
    outcomes = run("gaussian-blind", {"std": 0.3}, first_images(16), ThreatModel.of("linf", "0.1"))
    assert {outcome.status for outcome in outcomes} <= {Status.INVALID, Status.WRONG}


def test_misclassified_images_are_perturbed_too_and_stay_wrong() -> None:
    outcomes = run("translation", {"pixels": 3}, first_images(360), EVERYWHERE)
    wrong = [outcome for outcome in outcomes if outcome.status is Status.WRONG]
    assert wrong
    assert all(outcome.clean_prediction != outcome.label and outcome.distance is not None for outcome in wrong)
    # After a shift some of them are predicted correctly.
    assert any(outcome.prediction == outcome.label for outcome in wrong)
    # Attacks that search skip samples that were wrong before.
    assert all(
        outcome.forwards == 0 for outcome in run("fgsm", {}, first_images(360), EVERYWHERE) if outcome.status is Status.WRONG
    )
