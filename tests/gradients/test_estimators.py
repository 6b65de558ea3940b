"""Gradient estimators: each alone, and each in every gradient attack."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.attacks import build_attack
from kwbench.attacks.search.losses import LOSSES, margin
from kwbench.geometry import distance
from kwbench.gradients import EXACT, Eot, Es, Exact, Gradient, Relaxed, Smooth
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import Linear, Noisy, Quantised, Refusing, broken, cnn, first_images, run, sharp, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.12")
ESTIMATORS: dict[str, dict[str, Any]] = {
    "exact": {"kind": "exact"},
    "eot": {"kind": "eot", "draws": 2},
    "eot-auto": {"kind": "eot", "draws": "auto"},
    "smooth": {"kind": "smooth", "sigma": 0.05, "draws": 3},
    "smooth-auto": {"kind": "smooth", "sigma": 0.05, "draws": "auto"},
    "es": {"kind": "es", "sigma": 0.1, "draws": 40},
}


def _rng(samples: tuple[str, ...]) -> SampleRandom:
    return SampleRandom(0, "test", samples)


def _far_from_the_borders(x: Tensor) -> Tensor:
    """Return images near grey, whose pixels hardly ever leave [0, 1] under noise of 0.1."""
    return 0.45 + 0.1 * x


def _two(logits: Tensor) -> Tensor:
    return torch.stack([logits[:, 0], logits[:, 3] - logits[:, 1]])


@pytest.mark.parametrize(
    ("gradient", "slack"),
    [(EXACT, 1e-6), (Eot(draws=3), 1e-6), (Smooth(sigma=0.1, draws=3), 1e-6), (Es(sigma=0.1, draws=4000), 0.9)],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_every_estimator_finds_the_gradient_of_a_linear_model(gradient: Gradient, slack: float) -> None:
    weight = torch.randn((10, 64), generator=torch.Generator().manual_seed(0))
    model = wrapped(Linear(weight, torch.zeros(10)))
    batch = first_images(5)
    x = _far_from_the_borders(batch.x)
    estimate = gradient(model, x, _two, _rng(batch.samples))
    assert estimate.logits.shape == (5, 10)
    assert estimate.values.shape == (2, 5)
    expected = torch.stack([weight[0], weight[3] - weight[1]]).view(2, 1, 1, 8, 8).expand(2, 5, 1, 8, 8)
    # The standard error of a difference estimate is the gradient's length over the root of the draws; allow five of them.
    torch.testing.assert_close(estimate.gradients, expected, atol=slack, rtol=0)
    torch.testing.assert_close(estimate.logits, model(x))


@pytest.mark.parametrize(
    "gradient", [Smooth(sigma=0.1, draws=3), Es(sigma=0.1, draws=4000)], ids=lambda gradient: gradient.kind
)
def test_noise_cut_to_the_pixel_range_points_the_right_way_in_every_pixel(gradient: Gradient) -> None:
    batch = first_images(5)
    assert {0.0, 1.0} <= {*batch.x.flatten().tolist()}
    # Slopes of equal size, so that noise does not change the sign of any.
    weight = torch.randn((10, 64), generator=torch.Generator().manual_seed(0)).sign()

    def first(logits: Tensor) -> Tensor:
        return logits[None, :, 0]

    estimate = gradient(wrapped(Linear(weight, torch.zeros(10))), batch.x, first, _rng(batch.samples))
    assert torch.equal(estimate.gradients.sign(), weight[0].view(1, 1, 1, 8, 8).expand(1, 5, 1, 8, 8))


@pytest.mark.parametrize("estimator", ["smooth", "es"])
def test_a_model_that_refuses_values_outside_the_pixel_range_can_be_attacked(estimator: str) -> None:
    model = wrapped(Refusing(trained_cnn()))
    batch = sharp(first_images(24), model)
    parameters = {"steps": 5, "relative_step_size": 0.3, "gradient": ESTIMATORS[estimator]}
    assert broken(run("pgd", parameters, batch, LINF, model=model)).any()


@pytest.mark.parametrize(
    "gradient",
    [Smooth(sigma=0.1, draws=7), Smooth(sigma=1.0, draws="auto"), Es(sigma=0.1, draws=7)],
    ids=lambda gradient: f"{gradient.kind}-{gradient.draws}",
)
def test_rows_get_the_same_gradients_alone_and_in_a_larger_batch(gradient: Gradient) -> None:
    batch, model = first_images(6), cnn()

    def objective(labels: Tensor) -> Any:
        return lambda logits: margin(logits, labels)[None]

    together = gradient(model, batch.x, objective(batch.y), _rng(batch.samples))
    some = batch.take([4, 1])
    alone = gradient(model, some.x, objective(some.y), _rng(some.samples))
    assert torch.equal(alone.gradients, together.gradients[:, [4, 1]])


def test_passes_are_counted_for_the_rows_that_need_them() -> None:
    model, batch = cnn(), first_images(3)
    rows = torch.tensor([2, 0])

    def objective(logits: Tensor) -> Tensor:
        return logits.T[:2]

    for gradient, forwards, backwards in [
        (EXACT, 1, 2),
        (Eot(draws=3), 3, 6),
        (Smooth(sigma=0.1, draws=3), 4, 6),
        (Es(sigma=0.1, draws=3), 7, 0),
    ]:
        with model.metering(5):
            gradient(model, batch.x[:2], objective, _rng(batch.samples[:2]), rows)
            assert model.work() == ([forwards, 0, forwards, 0, 0], [backwards, 0, backwards, 0, 0])


def test_es_sees_jumps_that_autograd_cannot() -> None:
    model = wrapped(Quantised(trained_cnn()))
    batch = sharp(first_images(64), model)
    blind = run("pgd", {"random_start": False}, batch, LINF, model=model)
    assert not broken(blind).any()
    assert all(outcome.distance == 0 for outcome in blind), "a zero gradient moves nothing"
    parameters = {"steps": 10, "relative_step_size": 0.2, "gradient": ESTIMATORS["es"]}
    assert broken(run("pgd", parameters, batch, LINF, model=model)).double().mean() > 0.25


def test_expectation_over_transformation_beats_one_draw_on_a_noisy_model() -> None:
    model = wrapped(Noisy(trained_cnn(), 0.4), tile=32)
    assert model.measure_randomness(first_images(32).x)
    batch = first_images(64)

    def accuracy(gradient: dict[str, Any]) -> float:
        parameters = {"random_start": False, "steps": 10, "relative_step_size": 0.1, "gradient": gradient}
        outcomes = run("pgd", parameters, batch, LINF, model=model)
        return sum(outcome.fresh_correct for outcome in outcomes) / sum(outcome.fresh_draws for outcome in outcomes)

    assert accuracy({"kind": "eot", "draws": 30}) < accuracy({"kind": "exact"}) - 0.01


@pytest.mark.parametrize(("noise", "draws"), [(0.1, 2), (3.0, 8), (6.0, 32)])
def test_expectation_over_transformation_draws_until_two_halves_agree(noise: float, draws: int) -> None:
    """Means of n draws, of noise s times the signal, have a cosine of 1 / (1 + s^2 / n): 0.3 needs two times 3.9 draws for s =
    3, or 15 for s = 6."""

    class Shaky(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bn,bnk->bk", x.flatten(1), weight + noise * torch.randn((len(x), 64, 10)))

    weight = torch.randn((64, 10), generator=torch.Generator().manual_seed(0))
    model, batch = wrapped(Shaky()), first_images(64)
    model.stochastic = True
    with model.metering(64):
        Eot(draws="auto")(model, batch.x, _two, _rng(batch.samples))
        assert {*model.work()[0]} == {draws}


def test_expectation_over_transformation_gives_up_at_64_draws_and_takes_one_of_a_deterministic_model() -> None:
    class Static(torch.nn.Module):
        """A model whose logits are the image times white noise."""

        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) @ torch.randn(64, 10)) * 1e-20

    batch = first_images(8)
    model = wrapped(Static())
    for stochastic, expected in ((True, 64), (False, 1)):
        model.stochastic = stochastic
        with model.metering(8):
            Eot(draws="auto")(model, batch.x, _two, _rng(batch.samples))
            assert {*model.work()[0]} == {expected}


def test_each_sample_meets_noise_until_two_halves_agree() -> None:
    """A wave with s times the slope of the signal acts as noise: s = 6 needs 32 draws, s = 12 more than the maximum."""

    class Waving(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            steep = 20 * (x.mean(dim=(1, 2, 3), keepdim=True) - 0.2).round(decimals=1)
            return (x + steep * torch.sin(1e3 * x) * 2**0.5 / 1e3).flatten(1) @ weight

    weight = torch.randn((3 * 64 * 64, 10), generator=torch.Generator().manual_seed(0)).sign()
    model, x = wrapped(Waving(), shape=(3, 64, 64)), torch.full((3, 3, 64, 64), 0.2)
    for row, steepness in enumerate((0, 6, 12)):
        x[row] += steepness / 20
    with model.metering(3):
        estimate = Smooth(sigma=0.01, draws="auto")(model, x, _two, _rng(("a", "b", "c")))
        assert model.work() == ([3, 33, 65], [4, 64, 128])
    expected = torch.stack([weight[:, 0], weight[:, 3] - weight[:, 1]])[:, None]
    cosines = F.cosine_similarity(estimate.gradients.flatten(2), expected, dim=2)
    torch.testing.assert_close(cosines.mean(dim=0), torch.tensor([1.0, 0.69, 0.55]), atol=0.03, rtol=0)


@pytest.mark.parametrize(("gradient", "looks"), [(Eot(draws="auto"), 0), (Smooth(sigma=0.1, draws="auto"), 1)])
def test_a_flat_model_is_not_drawn_again_and_again(gradient: Gradient, looks: int) -> None:
    model = wrapped(Quantised(trained_cnn()))
    model.stochastic = True
    batch = first_images(8)
    with model.metering(8):
        gradient(model, batch.x, _two, _rng(batch.samples))
        assert {*model.work()[0]} == {2 + looks}


def test_both_points_of_a_difference_share_their_random_draws() -> None:
    class Offset(torch.nn.Module):
        """A linear model plus a random offset a pass, far larger than the effect of its input."""

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), weight) + 1e3 * torch.randn((len(x), 10))

    weight = torch.randn((10, 64), generator=torch.Generator().manual_seed(0))
    model = wrapped(Offset())
    model.stochastic = True
    batch = first_images(5)
    estimate = Es(sigma=0.1, draws=4000)(model, _far_from_the_borders(batch.x), _two, _rng(batch.samples))
    expected = torch.stack([weight[0], weight[3] - weight[1]]).view(2, 1, 1, 8, 8).expand(2, 5, 1, 8, 8)
    assert F.cosine_similarity(estimate.gradients.flatten(2), expected.flatten(2), dim=2).min() > 0.9
    before = model(batch.x)
    assert not torch.equal(model(batch.x), before), "later passes draw new numbers"


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(
    "gradient",
    [
        EXACT,
        Eot(draws=3),
        Eot(draws="auto"),
        Smooth(sigma=0.1, draws=3),
        Smooth(sigma=0.1, draws="auto"),
        Es(sigma=0.1, draws=3),
    ],
)
def test_no_estimate_costs_more_passes_than_declared(gradient: Gradient, stochastic: bool) -> None:
    model, batch = wrapped(Noisy(trained_cnn(), 1.0)), first_images(4)
    model.stochastic = stochastic
    with model.metering(4):
        gradient(model, batch.x, _two, _rng(batch.samples))
        forwards, backwards = model.work()
    most = gradient.passes(values=2)
    assert max(forwards) + max(backwards) <= most
    if getattr(gradient, "draws", 1) != "auto":
        assert max(forwards) + max(backwards) == most


def test_doubled_draws_are_those_that_were_chosen() -> None:
    assert Es(sigma=0.1, draws=5).doubled(2) == Es(sigma=0.1, draws=20)
    assert Relaxed(draws=2).doubled(1) == Relaxed(draws=4)
    for settled in (EXACT, Eot(draws="auto"), Smooth(sigma=0.1, draws="auto"), Relaxed()):
        assert settled.doubled(1) is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fgsm", {}),
        ("pgd", {"steps": 3, "relative_step_size": 0.4}),
        ("apgd", {"steps": 3, "loss": "dlr"}),
        ("mim", {"steps": 3}),
        ("transfer", {"steps": 3, "relative_step_size": 0.4}),
        ("deepfool", {"steps": 15}),  # estimates are noisy, and it mistakes noise for slope
        ("cw", {"steps": 20, "step_size": 0.1, "initial_const": 10.0}),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_gradient_attack_takes_every_estimator(name: str, parameters: dict[str, Any], estimator: str, norm: str) -> None:
    batch = sharp(first_images(24))
    threat = ThreatModel.of(norm, {"linf": "0.2", "l2": "1.2"}[norm])
    outcomes = run(name, {**parameters, "gradient": ESTIMATORS[estimator]}, batch, threat, model=cnn(tile=24))
    assert {outcome.status for outcome in outcomes} <= {Status.BROKEN, Status.HELD}
    assert broken(outcomes).any()


@pytest.mark.parametrize(("kind", "settings"), [(Eot, {"draws": 0}), (Smooth, {"sigma": 0.0}), (Es, {"sigma": -1.0})])
def test_estimators_refuse_meaningless_parameters(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive"):
        kind(**settings)


@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "relaxed"])
def test_every_estimator_takes_every_loss(estimator: str, loss: str, targets: int) -> None:
    batch, model = first_images(8), wrapped(Noisy(trained_cnn(), 0.05), tile=8)
    model.stochastic = True
    gradient = ESTIMATORS.get(estimator, {"kind": estimator})
    parameters = {"loss": loss, "targets": targets, "steps": 2, "gradient": gradient, "selection_draws": 1}
    z = build_attack("apgd", parameters)(model, batch.x, batch.y, LINF, _rng(batch.samples))
    assert distance(batch.x, z, "linf").min() > 0.01


def test_an_attack_refuses_an_unknown_estimator() -> None:
    from kwbench.errors import UsageError

    with pytest.raises(UsageError, match=r"pgd\.gradient"):
        build_attack("pgd", {"gradient": {"kind": "magic"}})


def test_noise_in_units_of_eps_is_as_long_as_the_ball_is_wide() -> None:
    estimator = Es(relative_sigma=0.25)
    linf = estimator.within(ThreatModel.of("linf", "0.2"), (1, 8, 8))
    l2 = estimator.within(ThreatModel.of("l2", "2"), (1, 8, 8))
    assert linf == Es(sigma=0.25 * 0.2)
    assert l2 == Es(sigma=0.25 * 2 / 8)
    assert EXACT.within(ThreatModel.of("linf", "0.2"), (1, 8, 8)) is EXACT


@pytest.mark.parametrize("sigmas", [{}, {"sigma": 0.1, "relative_sigma": 0.1}, {"relative_sigma": 0.0}])
def test_noise_has_one_length_and_it_is_positive(sigmas: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sigma"):
        Es(sigma=sigmas.get("sigma"), relative_sigma=sigmas.get("relative_sigma"))


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :10].clone()


@pytest.mark.parametrize("kind", [Exact, Eot])
def test_a_gradient_that_reaches_no_pixel_is_an_error_unless_set_to_zero(kind: type[Exact | Eot]) -> None:
    model, batch = wrapped(Detached()), first_images(4)
    rng = SampleRandom(0, "test", batch.samples)

    def objective(logits: Tensor) -> Tensor:
        return logits[None, :, 0]

    with pytest.raises(RuntimeError):
        kind()(model, batch.x, objective, rng)
    estimate = kind(unreachable="zero")(model, batch.x, objective, rng)
    assert not bool(estimate.gradients.any())
