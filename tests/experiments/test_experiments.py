"""Experiments on small trained networks and on layers with known results."""

from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kwbench.attacks import build_attack
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.experiments import EXPERIMENTS, SYNTHETIC, Subject, build_experiment, configuration
from kwbench.experiments.layers import Layers
from kwbench.model import Model
from kwbench.networks.activations import Kwta
from kwbench.randomness import SampleRandom
from kwbench.record.measurement import Array
from kwbench.threat import ThreatModel
from support.small_models import Linear, Noisy, cnn, first_images, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.1")


def measure(name: str, model: Model | None = None, n: int = 2, **parameters: Any) -> dict[str, Array]:
    attacks = {label: build_attack(label, {}) for label in ("fgsm", "noop")}
    subject = Subject(model or cnn(), first_images(n), LINF, 0, attacks)
    return build_experiment(name, parameters)(subject)  # type: ignore[no-any-return]


def kwta_network(gamma: float = 0.25) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Flatten(), nn.Linear(64, 48), Kwta(gamma), nn.Linear(48, 32), Kwta(gamma), nn.Linear(32, 10)]
        return nn.Sequential(*layers)


def test_the_centre_of_a_landscape_is_the_loss_at_the_image_and_the_loss_rises_along_the_gradient() -> None:
    arrays = measure("landscape", points=21, radius=0.02)
    batch, model = first_images(2), cnn()
    with torch.no_grad():
        expected = F.cross_entropy(model(batch.x).double(), batch.y, reduction="none")
    np.testing.assert_allclose(arrays["loss"][:, 10, 10], expected.numpy(), rtol=1e-4)
    np.testing.assert_allclose(arrays["e"], np.linspace(-0.02, 0.02, 21), atol=1e-8)
    assert (np.diff(arrays["loss"][:, 9:12, 10], axis=1) > 0).all()
    # The loss rises faster along the gradient's sign than along a random sign vector.
    assert (arrays["loss"][:, -1, 10] > arrays["loss"][:, 10, -1]).all()
    assert set(np.unique(arrays["right"])) <= {0.0, 1.0}


def test_a_landscape_does_not_depend_on_the_tile_and_reaches_beyond_the_ball_by_default() -> None:
    small, large = (measure("landscape", cnn(tile=tile), n=1, points=4) for tile in (5, 64))
    np.testing.assert_allclose(small["loss"], large["loss"], rtol=1e-4)
    assert small["e"][-1] == pytest.approx(0.1 * 0.04 / 0.031)
    steep = measure("landscape", n=1, points=3, radius=0.5, directions="l2")
    assert steep["loss"].shape == (1, 3, 3)


def test_logits_are_recorded_from_the_clean_image_to_the_boundary_of_the_ball() -> None:
    arrays = measure("logits", steps=20)
    batch = first_images(2)
    np.testing.assert_allclose(arrays["logits"][:, 0], cnn()(batch.x).detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(arrays["distance"][:, [0, 10, 20]], [[0, 0.05, 0.1]] * 2, atol=1e-6)
    true = np.take_along_axis(arrays["logits"], arrays["label"].astype(int)[:, None, None], axis=2)[..., 0]
    assert (true[:, -1] < true[:, 0]).all()


def test_a_pattern_changes_where_a_direction_crosses_a_hyperplane_of_the_layer() -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    first = nn.Linear(64, 5, bias=False)
    with torch.no_grad():
        first.weight.copy_(weight)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(5, 10))
    arrays = measure("patterns", wrapped(network), n=3, directions=4)
    # Draw the same directions again; along each, the first sign change ends the pattern.
    batch = first_images(3)
    normals = SampleRandom(0, "patterns", batch.samples).normal("directions", (4, 1, 8, 8)).double().flatten(2)
    for row, x in enumerate(batch.x.double().flatten(1)):
        flat = normals[row] - (normals[row] @ x)[:, None] * x / (x @ x)
        flat = flat / flat.norm(dim=1, keepdim=True) * x.norm()
        share = -(weight.double() @ x) / (flat @ weight.double().T)
        expected = torch.where((share > 0) & (share <= 1), share, torch.inf).amin(dim=1)
        expected[expected.isinf()] = torch.nan
        np.testing.assert_allclose(arrays["distance"][row], expected.numpy(), rtol=1e-9)


def test_logits_jump_where_a_kwta_pattern_changes_but_not_where_a_relu_pattern_does() -> None:
    jumping, smooth = measure("patterns", wrapped(kwta_network())), measure("patterns", wrapped(trained_cnn()))
    assert np.nanmedian(jumping["jump"]) > 1e-2
    assert np.nanmax(smooth["jump"]) < 1e-9
    assert (jumping["distance"] > 0).all()


def test_patterns_rejects_stochastic_networks_and_networks_without_pattern_layers() -> None:
    noisy = wrapped(Noisy(trained_cnn(), 0.1))
    noisy.measure_randomness(first_images(2).x)
    with pytest.raises(CannotEvaluate, match="is random"):
        measure("patterns", noisy)
    with pytest.raises(CannotEvaluate, match="has no k-WTA, LWTA or ReLU layer"):
        measure("patterns", wrapped(Linear(torch.ones(10, 64), torch.zeros(10))))


def test_answers_has_probabilities_before_and_after_each_attack_and_examples_of_both_kinds() -> None:
    arrays = measure("answers", n=24, examples=2)
    batch, model = first_images(24), cnn()
    with torch.no_grad():
        logits = model(batch.x)
    clean = logits.double().softmax(dim=1).gather(1, batch.y[:, None])[:, 0].numpy()
    np.testing.assert_allclose(arrays["probability"][0], clean, rtol=1e-4)
    np.testing.assert_array_equal(arrays["prediction"][2], arrays["prediction"][0])
    assert arrays["probability"][1].mean() < arrays["probability"][0].mean()
    assert arrays["moved"][1].max() <= 0.1 + 1e-6
    fooled, held = arrays["example"][0]
    for kind, rows in enumerate((fooled, held)):
        for position, row in enumerate(rows[rows >= 0].astype(int)):
            assert (arrays["prediction"][1, row] != arrays["label"][row]) == (kind == 0)
            np.testing.assert_array_equal(arrays["image"][0, kind, position], batch.x[row].numpy())
    # The attack `noop` never fools the model.
    assert (arrays["example"][1, 0] == -1).all()
    assert np.isnan(arrays["image"][1, 0]).all()


def test_a_proposal_outside_the_ball_or_the_pixel_range_is_replaced_by_the_clean_image() -> None:
    class InvalidProposals:
        source = None

        def __call__(self, model: Model, x: torch.Tensor, *_: object) -> torch.Tensor:
            z = x.clone()
            z[0] = (z[0] + 0.5).clamp(0, 1)
            z[1] = torch.nan
            z[2] = x[2].sub(0.01)
            return z

    subject = Subject(cnn(), first_images(4), LINF, 0, {"invalid": InvalidProposals()})  # type: ignore[dict-item]
    assert (build_experiment("answers", {})(subject)["moved"] == 0).all()


def test_the_region_of_a_pattern_shrinks_with_width_and_jumps_grow_with_sparsity() -> None:
    arrays = Layers(widths=(64, 512), gammas=(0.05, 0.4), draws=4, directions=32)(0)
    assert (arrays["nearest"] <= arrays["typical"]).all()
    assert (arrays["typical"] <= arrays["farthest"]).all()
    typical, jump = np.median(arrays["typical"], axis=2), np.median(arrays["jump"], axis=2)
    # Eight times the width gives about an eighth of the distance.
    assert (typical[0] / typical[1] > 3).all()
    assert (jump[:, 0] > jump[:, 1]).all()
    # The k-th largest of many normal values approaches their quantile.
    np.testing.assert_allclose(np.median(arrays["threshold"], axis=2)[1], [1.645, 0.253], atol=0.2)


def test_the_nearest_other_pattern_begins_where_a_winner_equals_a_loser() -> None:
    # In two dimensions only two directions are perpendicular to the input; the nearest other pattern lies along one of them.
    arrays = Layers(widths=(12,), gammas=(0.25,), inputs=2, draws=20, directions=1)(0)
    nearest, along = arrays["nearest"][0, 0], arrays["typical"][0, 0]
    assert (along > nearest * (1 - 1e-9)).all()
    assert 4 <= np.isclose(along, nearest, rtol=1e-9).sum() <= 16


def test_a_kwta_network_fits_the_points_of_a_function_and_jumps_between_them() -> None:
    arrays = build_experiment("fit", {"points": 8, "width": 40, "steps": 600, "grid": 401})(0)
    fitted = np.interp(arrays["x"], arrays["place"], arrays["relu"])
    np.testing.assert_allclose(fitted, arrays["y"], atol=0.1)
    steps = {name: np.abs(np.diff(arrays[name])) for name in ("kwta", "relu")}
    changes = np.diff(arrays["pattern"]) > 0
    assert steps["kwta"].max() > 3 * steps["relu"].max()
    assert changes[steps["kwta"].argmax()]
    again = build_experiment("fit", {"points": 8, "width": 40, "steps": 600, "grid": 401})(0)
    assert all((arrays[name] == again[name]).all() for name in arrays)


def test_the_loss_rises_as_weights_and_images_move_along_their_gradients() -> None:
    arrays = measure("weights", n=16, steps=8, length=0.01)
    batch, model = first_images(16), cnn()
    with torch.no_grad():
        start = F.cross_entropy(model(batch.x), batch.y, reduction="none").numpy()
    for name in ("weights", "images"):
        np.testing.assert_allclose(arrays[name][:, 0], start, rtol=1e-3, atol=1e-6)
    assert (np.diff(arrays["weights"].mean(axis=0)) > 0).all()
    assert (arrays["images"][:, -1] > arrays["images"][:, 0]).all()
    assert (np.diff(arrays["images"], axis=1)[:, 0] > 0).all()
    # The experiment does not modify the network.
    again = measure("weights", n=16, steps=8, length=0.01)
    assert all((arrays[name] == again[name]).all() for name in arrays)


class LayoutRecorder(nn.Conv2d):
    """Records whether images and weights are contiguous."""

    contiguous: ClassVar[list[bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.requires_grad and x.requires_grad:
            self.contiguous.append(x.is_contiguous() and self.weight.is_contiguous())
        return super().forward(x)


def test_the_gradient_is_computed_with_contiguous_tensors_despite_channels_last_inputs() -> None:
    network = nn.Sequential(LayoutRecorder(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    grey = first_images(4)
    images = replace(grey, x=grey.x.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last))
    network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    model = wrapped(network, shape=(3, 8, 8))
    build_experiment("weights", {"steps": 2})(Subject(model, images, LINF, 0, {}))
    assert set(LayoutRecorder.contiguous) == {True}


def test_a_stochastic_network_uses_the_same_noise_at_every_step() -> None:
    arrays = measure("weights", wrapped(Noisy(trained_cnn(), 0.3)), n=8, steps=4, length=1e-6)
    np.testing.assert_allclose(arrays["weights"], arrays["weights"][:, :1].repeat(5, axis=1), rtol=1e-2, atol=1e-4)
    with pytest.raises(CannotEvaluate, match="has no weights to move"):
        measure("weights", wrapped(Linear(torch.ones(10, 64), torch.zeros(10))))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("landscapes", {}, "did you mean 'landscape'"),
        ("landscape", {"radios": 1}, "did you mean 'radius'"),
        ("landscape", {"points": 1}, "points must be at least 2"),
        ("landscape", {"points": "3"}, "landscape.points: .* got '3'"),
        ("logits", {"steps": 0}, "steps must be at least 1"),
        ("logits", {"step_size": -0.1}, "step_size must be positive"),
        ("patterns", {"directions": 0}, "directions must be at least 1"),
        ("answers", {"examples": -1}, "examples must not be negative"),
        ("weights", {"length": 0.0}, "length positive"),
        ("layers", {"gammas": [1.5]}, "gammas must lie between 0 and 1"),
        ("fit", {"gamma": 0.0}, "gamma must lie in"),
    ],
)
def test_invalid_experiments_are_rejected(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_experiment(name, parameters)


def test_every_parameter_is_part_of_the_configuration() -> None:
    for name in EXPERIMENTS | SYNTHETIC:
        parameters = configuration(build_experiment(name, {}))
        assert parameters == configuration(build_experiment(name, parameters))
        assert list(parameters) == [field.name for field in fields((EXPERIMENTS | SYNTHETIC)[name])]
