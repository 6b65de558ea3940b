"""Projections, steepest directions and random starts, in every norm."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from kwbench.geometry import distance, norms, project, random_start, settle, steepest, total
from kwbench.randomness import SampleRandom
from kwbench.threat import TOLERANCE, Norm, ThreatModel

NORMS = ["linf", "l2", "l1"]
RADII = {"linf": 1.0, "l2": 4.0, "l1": 20.0}

pixels = hnp.arrays("float32", (3, 2, 4, 3), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)
anywhere = hnp.arrays("float32", (3, 2, 4, 3), elements=st.floats(-3, 3, width=32)).map(torch.from_numpy)
shares = st.floats(0.01, 1)


def _threat(norm: Norm, share: float) -> ThreatModel:
    return ThreatModel.of(norm, round(share * RADII[norm], 4))


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None)
@given(x=pixels, z=anywhere, share=shares)
def test_a_projection_lies_in_the_ball_is_no_longer_and_is_idempotent(norm: Norm, x: Tensor, z: Tensor, share: float) -> None:
    threat = _threat(norm, share)
    once = project(z, x, threat)
    assert bool((once >= 0).all())
    assert bool((once <= 1).all())
    assert bool((distance(x, once, threat.norm) <= threat.radius + TOLERANCE).all())
    assert bool((distance(x, once, threat.norm) <= distance(x, z, threat.norm) + TOLERANCE).all())
    torch.testing.assert_close(project(once, x, threat), once, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40, deadline=None)
@given(x=pixels, z=pixels, share=st.floats(0, 0.999))
def test_a_projection_keeps_points_inside_the_ball(norm: Norm, x: Tensor, z: Tensor, share: float) -> None:
    threat = _threat(norm, 0.2)
    far = distance(x, z, threat.norm).clamp_min(1e-9)
    inside = x + (z - x) * (share * threat.radius / far).clamp_max(1).float().view(-1, 1, 1, 1)
    inside = inside.clamp(0, 1)
    slack = 1e-7 if norm == "linf" else 0.0  # x - eps and x + eps are rounded
    torch.testing.assert_close(project(inside, x, threat), inside, atol=slack, rtol=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_no_point_of_the_ball_is_nearer_than_the_projection(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.full((1, 1, 2, 2), 0.5)
    threat = ThreatModel.of(norm, "0.3")
    for _ in range(20):
        z = x + 0.4 * torch.randn(x.shape, generator=generator).clamp(-1, 1)
        projection_distance = (project(z, x, threat) - z).norm()
        others = x + 0.3 * torch.randn((20_000, *x.shape[1:]), generator=generator)
        others = others[norms(others - x, threat.norm) <= 0.3]
        assert projection_distance <= (others - z).flatten(1).norm(dim=1).min() + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_of_many_pixels_satisfies_the_judge(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((4, 3, 64, 64), generator=generator)
    z = x + torch.randn(x.shape, generator=generator)
    threat = ThreatModel.of(norm, {"linf": "8/255", "l2": "2", "l1": "12"}[norm])
    far = distance(x, project(z, x, threat), threat.norm)
    assert bool((far <= threat.radius + TOLERANCE).all())
    # Clipping to the pixel range may shorten the perturbation, but hardly does here.
    assert bool((far > 0.4 * threat.radius).all())


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40, deadline=None)
@given(gradient=anywhere, scale=st.sampled_from([1e-30, 1e-20, 1e-8, 1.0, 1e8]))
def test_the_steepest_direction_has_unit_norm_at_any_scale_and_climbs_fastest(
    norm: Norm, gradient: Tensor, scale: float
) -> None:
    gradient = torch.where(gradient.abs() < 1e-3, 0.0, gradient)
    flat = gradient.flatten(1).abs().amax(dim=1) == 0
    direction = steepest(gradient * scale, norm)
    torch.testing.assert_close(norms(direction, norm)[~flat], torch.ones(int((~flat).sum())))
    assert bool((direction[flat] == 0).all())
    # Hölder: no direction of unit norm gains more than the dual norm of the gradient.
    duals: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
    torch.testing.assert_close((direction * gradient).flatten(1).sum(dim=1), norms(gradient, duals[norm]), rtol=1e-4, atol=1e-6)


def _rng(count: int) -> SampleRandom:
    return SampleRandom(0, "test", tuple(str(sample) for sample in range(count)))


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_lie_inside_and_fill_the_ball_evenly(norm: Norm) -> None:
    x = torch.full((4000, 1, 1, 2), 0.5)
    threat = ThreatModel.of(norm, "0.4")
    start = random_start(x, threat, _rng(len(x)))
    far = distance(x, start, threat.norm)
    assert bool((far <= threat.radius + TOLERANCE).all())
    # In two dimensions a share r^2 of a uniform ball lies within r times its radius.
    for share in (0.25, 0.5, 0.75):
        assert abs((far <= share * threat.radius).double().mean() - share**2) < 4 * math.sqrt(0.25 / len(x))
    torch.testing.assert_close((start - x).mean(dim=0), torch.zeros(1, 1, 2), atol=0.015, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_stay_in_the_pixel_range(norm: Norm) -> None:
    x = torch.cat([torch.zeros((8, 1, 4, 4)), torch.ones((8, 1, 4, 4))])
    start = random_start(x, _threat(norm, 0.5), _rng(len(x)))
    assert bool(((start >= 0) & (start <= 1)).all())
    assert bool((distance(x, start, norm) > 0).all())


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_do_not_depend_on_other_samples(norm: Norm) -> None:
    x = torch.full((99, 1, 3, 3), 0.5)
    whole = random_start(x, _threat(norm, 0.3), _rng(99))
    for size in range(1, 99):
        assert bool((random_start(x[:size], _threat(norm, 0.3), _rng(size)) == whole[:size]).all())


def test_sums_over_a_large_image_do_not_depend_on_other_images() -> None:
    images = torch.randn(6, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for some in (images, images.square(), images[:, :1, :, :200], images.double()):
            alone = torch.cat([total(image[None]) for image in some])
            assert torch.equal(total(some), alone)
        for norm in get_args(Norm):
            assert torch.equal(steepest(images, norm), torch.cat([steepest(image[None], norm) for image in images]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("norm", NORMS)
def test_settling_corrects_rounding_errors_only(norm: Norm) -> None:
    x = torch.full((3, 1, 8, 8), 0.5)
    threat = _threat(norm, 0.1)
    slope = torch.ones_like(x) + torch.arange(64.0).view(1, 1, 8, 8) / 64
    unit = slope / norms(slope, threat.norm).view(-1, 1, 1, 1)
    z: Tensor = x + unit * threat.radius * torch.tensor([0.5, 1 + 5e-6, 1.01]).view(-1, 1, 1, 1)
    settled = settle(z, x, threat)
    far = distance(x, settled, threat.norm)
    torch.testing.assert_close(settled[0], z[0], atol=0, rtol=0)
    assert threat.radius - 1e-4 < far[1] <= threat.radius + TOLERANCE
    assert far[2] > threat.radius * 1.005, "points outside the ball are not moved into it"


def test_distances_are_measured_in_double_precision() -> None:
    x, z = torch.zeros(1, 1, 100, 100), torch.full((1, 1, 100, 100), 0.1)
    assert abs(distance(x, z, "l1").item() - 10_000 * float(torch.tensor(0.1))) < 1e-9
