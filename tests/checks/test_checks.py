"""Every check fires on a model with its defect and on no sound model."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.checks import CHECKS, Case, examine
from kwbench.finding import Finding
from kwbench.threat import ThreatModel
from support.small_models import Linear, Noisy, Quantised, Refusing, digits, first_images, sharp, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.2")
L2 = ThreatModel.of("l2", "1")


class Changed(nn.Module):
    """A function of the trained CNN and its input."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = trained_cnn(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.network, x)


class Counting(nn.Module):
    """A network whose logits drift from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.calls = trained_cnn(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.network(x)
        return logits * (1 + 0.01 * (self.calls % 7))


class Killed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def killed(network: nn.Module, x: Tensor) -> Tensor:
    return network(Killed.apply(x))  # type: ignore[no-any-return,no-untyped-call]


def misled(network: nn.Module, x: Tensor) -> Tensor:
    """Return correct logits whose gradient is only that of a ripple."""
    return network(x.detach()) + 1e-3 * torch.sin(1e4 * x).flatten(1)[:, :10]  # type: ignore[no-any-return]


def softplus() -> nn.Module:
    """Return the trained CNN with softplus instead of ReLU, whose logits are smooth."""
    network = trained_cnn()
    assert isinstance(network, nn.Sequential)
    return nn.Sequential(*(nn.Softplus(beta=20) if isinstance(layer, nn.ReLU) else layer for layer in network))


def case(module: nn.Module, threat: ThreatModel = LINF, n: int = 64) -> Case:
    model = wrapped(module)
    images = first_images(80)
    model.measure_randomness(images.x[:64])
    right = sharp(images, model)
    return Case(model, right.take(range(min(n, len(right)))), threat, seed=0)


def findings(module: nn.Module, *checks: str, threat: ThreatModel = LINF) -> dict[str, Finding]:
    about = case(module, threat)
    return {by_check.check: by_check for check in checks for by_check in examine(check, about)}


def linear() -> nn.Module:
    """Return the linear model fitted to the training digits by least squares."""
    train = digits().train.batch(range(len(digits().train)))
    flat = torch.cat([train.x.flatten(1), torch.ones(len(train), 1)], dim=1)
    solution = torch.linalg.lstsq(flat.T @ flat + torch.eye(65), flat.T @ F.one_hot(train.y, 10).float()).solution
    return Linear(solution[:64].T, solution[64])


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("sound", [trained_cnn, softplus, linear], ids=["relu", "softplus", "linear"])
def test_no_check_fires_on_a_sound_deterministic_network(sound: Callable[[], nn.Module], threat: ThreatModel) -> None:
    by_check = findings(sound(), *CHECKS, threat=threat)
    assert [finding for finding in by_check.values() if finding.fires] == []
    assert all(finding.figure is not None for finding in by_check.values())


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("network", [trained_cnn, lambda: Quantised(trained_cnn())], ids=["plain", "quantised"])
def test_every_check_stays_within_the_pixel_range(network: Callable[[], nn.Module], threat: ThreatModel) -> None:
    assert {x for x in findings(Refusing(network()), *CHECKS, threat=threat).values() if x.figure is None} == set()


def test_on_a_noisy_network_only_the_randomness_fires() -> None:
    by_check = findings(Noisy(trained_cnn(), 0.2), *CHECKS)
    assert [finding.check for finding in by_check.values() if finding.fires] == ["randomness"]
    assert by_check["randomness"].kind == "note"


def test_a_deterministic_network_has_no_finding_on_randomness() -> None:
    assert findings(trained_cnn(), "randomness", "gradient noise") == {}


def test_a_quantised_input_masks_gradients_but_leaves_no_doubt() -> None:
    by_check = findings(Quantised(trained_cnn()), *CHECKS)
    masking = {finding.check for finding in by_check.values() if finding.fires and finding.kind == "masking"}
    misleading = {"zero gradients", "shattered gradients", "misleading gradients", "plateaus"}
    assert masking == {*misleading, "large eps", "unbounded attack"}
    assert not any(finding.fires for finding in by_check.values() if finding.kind == "doubt")
    assert by_check["zero gradients"].figure == 1
    assert len(by_check["zero gradients"].samples) == 64


@pytest.mark.parametrize("killer", [killed, lambda net, x: torch.from_numpy(net(x.detach()).numpy())], ids=["zero", "no graph"])
def test_a_killed_gradient_fires_while_function_values_find_a_slope(
    killer: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    by_check = findings(Changed(killer), "zero gradients", "unbounded attack")
    assert by_check["zero gradients"].fires
    assert by_check["unbounded attack"].fires
    assert not by_check["flat"].fires
    assert not by_check["unreachable"].fires


def test_a_gradient_of_another_function_is_shattered() -> None:
    by_check = findings(Changed(misled), "zero gradients", "shattered gradients")
    assert not by_check["zero gradients"].fires
    assert by_check["shattered gradients"].fires


def test_jumps_shatter_gradients() -> None:
    jumping = Changed(lambda net, x: net(x + 0.2 * (200 * x).floor().remainder(2)))
    assert findings(jumping, "shattered gradients")["shattered gradients"].fires


def test_a_constant_function_is_flat_and_unreachable_to_every_estimator() -> None:
    constant = Changed(lambda net, x: net(x).detach().sign() * 0 + torch.arange(10.0))
    about = Case(wrapped(constant), first_images(32), LINF, seed=0)
    about = replace(about, batch=replace(about.batch, y=torch.full((32,), 9)))
    by_check = {finding.check: finding for check in ("zero gradients", "unbounded attack") for finding in examine(check, about)}
    assert by_check["flat"].fires
    assert by_check["unreachable"].fires
    assert {by_check["flat"].kind, by_check["unreachable"].kind} == {"doubt"}


def test_gradients_drowned_in_noise_are_noise_even_on_average() -> None:
    drowned = Changed(lambda net, x: net(x) + 100 * x.flatten(1) @ torch.randn(64, 10))
    by_check = findings(drowned, "gradient noise")
    assert by_check["gradient noise"].fires
    assert by_check["averaged gradient noise"].fires
    calm = findings(Noisy(trained_cnn(), 0.05), "gradient noise")
    assert not calm["gradient noise"].fires
    assert not calm["averaged gradient noise"].fires


def test_a_loss_that_still_rises_fires() -> None:
    def windowed(network: nn.Module, x: Tensor) -> Tensor:
        # Gradients reach one column at a time, so that each pixel moves rarely.
        column = torch.arange(8) == int(x.sum().abs() * 1e4) % 8
        return network(torch.where(column, x, x.detach()))  # type: ignore[no-any-return]

    assert findings(Changed(windowed), "rising loss")["rising loss"].fires


def test_a_known_seed_helps_the_adversary_unless_gradients_are_masked() -> None:
    about = case(Noisy(trained_cnn(), 0.3))
    (honest, bounded) = examine("frozen randomness", replace(about, robust=[0.1] * 64))
    assert not honest.fires
    assert not bounded.fires
    hidden = case(Changed(lambda net, x: net((x + 0.1 * torch.randn_like(x)).mul(8).round() / 8)))
    (lying, _) = examine("frozen randomness", replace(hidden, robust=[0.1] * 64))
    assert (lying.fires, lying.kind) == (True, "masking")


def test_robust_accuracy_above_the_standard_one_is_a_doubt() -> None:
    about = case(Noisy(trained_cnn(), 0.5))
    by_check = {finding.check: finding for finding in examine("frozen randomness", replace(about, robust=[1.0] * 64))}
    assert (by_check["above standard"].fires, by_check["above standard"].kind) == (True, "doubt")


def test_a_deterministic_model_has_nothing_to_freeze() -> None:
    assert examine("frozen randomness", replace(case(trained_cnn()), robust=[0.1] * 64)) == []


def test_probabilities_are_told_from_logits() -> None:
    assert findings(Changed(lambda net, x: net(x).softmax(dim=1)), "outputs")["probabilities"].fires
    assert not findings(trained_cnn(), "outputs")["probabilities"].fires


def test_logits_times_5000_saturate() -> None:
    finding = findings(Changed(lambda net, x: net(x) * 5000), "outputs")["saturation"]
    assert (finding.fires, finding.figure) == (True, 1)


def test_logits_that_depend_on_the_batch_or_on_earlier_calls_are_a_doubt() -> None:
    for module in (Changed(lambda net, x: net(x - 0.1 * x.mean())), Counting()):
        finding = findings(module, "state")["state"]
        assert finding.fires
        assert finding.kind == "doubt"


def test_a_wave_longer_than_the_difference_step_misleads_across_the_ball() -> None:
    folded = findings(Changed(lambda net, x: net(x + 0.04 * torch.sin(150 * x))), "misleading gradients", "shattered gradients")
    assert not folded["shattered gradients"].fires
    misled = folded["misleading gradients"]
    assert (misled.fires, misled.kind) == (True, "masking")


@pytest.mark.parametrize("module", [trained_cnn(), Noisy(trained_cnn(), 0.1)], ids=["cnn", "noisy"])
def test_guesses_from_function_values_do_not_lead_further_than_true_gradients(module: nn.Module) -> None:
    assert not findings(module, "misleading gradients")["misleading gradients"].fires


def test_gradients_without_a_common_direction_in_the_ball_are_incoherent() -> None:
    """The slope of the wave is 30 times that of the pixels."""
    waving = findings(Changed(lambda net, x: net(x + 0.1 * torch.sin(300 * x))), "incoherent gradients")["incoherent gradients"]
    assert (waving.fires, waving.kind) == (True, "masking")
    assert waving.figure is not None
    assert abs(waving.figure) < 0.1


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize(
    "module", [trained_cnn(), Noisy(trained_cnn(), 0.1), Quantised(trained_cnn())], ids=["cnn", "noisy", "flat"]
)
def test_sound_and_missing_gradients_are_not_incoherent(module: nn.Module, threat: ThreatModel) -> None:
    assert not findings(module, "incoherent gradients", threat=threat)["incoherent gradients"].fires


class Remembering(nn.Module):
    """Changes the logits of images close to one that it has seen before."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained_cnn()
        self.known: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        for row, image in enumerate(x.detach()):
            distances = [(image - known).abs().amax() for known in self.known]
            if any(0 < distance < 0.05 for distance in distances):
                logits = logits.index_fill(0, torch.tensor(row), 0.0)
            if not any(distance == 0 for distance in distances):
                self.known.append(image.clone())
        return logits


def test_a_model_that_remembers_neighbouring_images_is_a_doubt() -> None:
    finding = findings(Remembering(), "state")["state"]
    assert (finding.fires, finding.figure) == (True, 1)


def test_logits_that_change_with_gradients_enabled_are_a_doubt() -> None:
    finding = findings(Changed(lambda net, x: net(1 - x if x.requires_grad else x)), "state")["state"]
    assert (finding.fires, finding.figure) == (True, 1)


def test_jumps_and_models_that_cannot_be_copied_are_no_state() -> None:
    rounded = Changed(lambda net, x: net((x * 4).round() / 4))
    assert not findings(rounded, "state")["state"].fires
    rounded.lock = threading.Lock()  # type: ignore[assignment]
    assert not findings(rounded, "state")["state"].fires


def test_noise_from_the_global_generators_is_no_state() -> None:
    assert not findings(Noisy(trained_cnn(), 0.2), "state")["state"].fires


def test_noise_from_a_generator_of_its_own_is_state() -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = Changed(lambda net, x: net(x + 0.1 * torch.randn(x.shape, generator=generator)))
    assert findings(noisy, "state")["state"].fires


def test_a_single_step_that_beats_many_fires() -> None:
    # Gradients exist on clean images only, whose pixels are sixteenths.
    hidden = Changed(lambda net, x: net(x if bool(((x * 16).round() == x * 16).all()) else x.detach()))
    finding = findings(hidden, "eps sweep")["single step"]
    assert finding.fires
    assert finding.kind == "masking"


def test_accuracy_that_rises_with_eps_fires() -> None:
    images = first_images(80).x.flatten(1)

    def near_only(network: nn.Module, x: Tensor) -> Tensor:
        # At the starting points of PGD in the larger ball, gradients are zero.
        far = torch.cdist(x.detach().flatten(1), images, p=float("inf")).amin(dim=1) > 0.21
        return network(torch.where(far.view(-1, 1, 1, 1), x.detach(), x))  # type: ignore[no-any-return]

    by_check = findings(Changed(near_only), "eps sweep")
    assert by_check["eps sweep"].fires
    assert by_check["large eps"].fires


def test_operations_that_hide_gradients_and_unseen_ones_are_named() -> None:
    quantised = findings(Quantised(trained_cnn()), "operations")
    assert quantised["relaxed operations"].fires
    assert "round" in quantised["relaxed operations"].statement
    assert not quantised["unseen"].fires
    detour = findings(Changed(lambda net, x: torch.from_numpy(net(x.detach()).numpy())), "operations")["unseen"]
    assert (detour.fires, detour.kind) == (True, "doubt")
    assert "numpy" in detour.statement


def test_checks_do_not_depend_on_earlier_metering() -> None:
    about = case(trained_cnn())
    before = examine("unbounded attack", about)
    with about.model.metering(3):
        pass
    assert examine("unbounded attack", about) == before


def test_a_check_that_raises_is_a_finding_without_a_figure() -> None:
    calls = 0

    def flaky(network: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise ValueError("no more")
        return network(x)  # type: ignore[no-any-return]

    finding = findings(Changed(flaky), "eps sweep")["eps sweep"]
    assert (finding.figure, finding.fires, finding.kind) == (None, False, "doubt")
    assert "no more" in finding.statement


def test_a_check_repeats_its_findings() -> None:
    for module in (trained_cnn(), Noisy(trained_cnn(), 0.2)):
        assert findings(module, *CHECKS) == findings(module, *CHECKS)
