"""Prediction rules of random models: mean logits, votes and frozen randomness."""

import pytest
import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate
from kwbench.model import Prediction
from support.modules import Counting, Dropout, NumpyNoise, PythonNoise
from support.small_models import Noisy, cnn, first_images, trained_cnn, wrapped


def test_mean_logits_averages_its_draws_and_counts_every_one() -> None:
    x = first_images(4).x
    model = wrapped(Noisy(trained_cnn(), 0.3), tile=4, prediction=Prediction("mean_logits", 6))
    single = wrapped(Noisy(trained_cnn(), 0.3), tile=4)
    model.stochastic = single.stochastic = True
    model.reseed("place")
    single.reseed("place")
    with model.metering(4):
        mean = model(x)
        assert model.work() == ([6] * 4, [0] * 4)
        model(x[:2].requires_grad_(), torch.tensor([1, 3])).sum().backward()  # type: ignore[no-untyped-call]
        assert model.work() == ([6, 12, 6, 12], [0, 6, 0, 6])
    torch.testing.assert_close(mean, torch.stack([single(x) for _ in range(6)]).mean(dim=0))


class Chosen(nn.Module):
    """Returns given logits for every image, one row of them a pass."""

    def __init__(self, *answers: list[float]) -> None:
        super().__init__()
        self.answers, self.passes = torch.tensor(answers), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.answers[(self.passes - 1) % len(self.answers)].expand(len(x), -1) + 0 * x.sum()


@pytest.mark.parametrize(
    ("answers", "mean", "majority"),
    [
        ([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 9.0, 0.0]], 1, 0),
        ([[1.0, 0.0, 0.0], [0.0, 9.0, 0.0], [1.0, 0.0, 0.0], [0.0, 9.0, 0.0]], 1, 1),  # a tie goes to the larger mean logit
        ([[0.0, 0.0, 1.0], [0.0, 5.0, 4.0], [0.0, 4.0, 4.5]], 2, 2),
    ],
)
def test_a_vote_goes_to_the_majority_and_a_tie_to_the_larger_mean_logit(
    answers: list[list[float]], mean: int, majority: int
) -> None:
    rules = {Prediction("mean_logits", len(answers)): mean, Prediction("vote", len(answers)): majority}
    for rule, expected in rules.items():
        model = wrapped(Chosen(*answers), classes=3, tile=4, prediction=rule)
        model.stochastic = True
        with model.metering(6):
            predicted, finite = model.predict(first_images(6).x)
            assert model.work()[0] == [len(answers)] * 6
        assert predicted.tolist() == [expected] * 6
        assert finite.all()


def test_a_vote_with_a_nan_draw_is_no_answer() -> None:
    model = wrapped(Chosen([0.0, 1.0], [0.0, 1.0], [0.0, torch.nan]), classes=2, prediction=Prediction("vote", 3))
    model.stochastic = True
    assert not model.predict(first_images(2).x)[1].any()
    assert [len(output) for output in model.predict(first_images(0).x)] == [0, 0]


def test_a_vote_has_a_gradient() -> None:
    model, x = wrapped(Noisy(trained_cnn(), 0.3), prediction=Prediction("vote", 5)), first_images(8).x
    assert model.measure_randomness(x)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
    assert gradient.flatten(1).abs().sum(dim=1).gt(0).all()
    assert (logits.exp().sum(dim=1) <= 1 + 1e-5).all(), "means of log-probabilities"


@pytest.mark.parametrize("kind", [NumpyNoise, PythonNoise, Dropout])
def test_frozen_randomness_makes_a_deterministic_classifier_in_every_batch(kind: type[nn.Module]) -> None:
    x = first_images(20).x
    frozen = [wrapped(kind(), tile=8, prediction=Prediction("frozen", seed=seed)) for seed in (0, 1)]
    for model in frozen:
        assert not model.measure_randomness(x[:8])
        assert not model.stochastic
        assert model.rule == model.prediction
    logits = frozen[0](x)
    frozen[0].reseed("elsewhere")
    assert torch.equal(frozen[0](x), logits)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:7], order[:1]):
        assert torch.equal(frozen[0](x[rows]), logits[rows])
    assert not torch.equal(frozen[1](x), logits)
    # The frozen model is one draw of the random module, with the same noise for every image.
    assert torch.equal(frozen[0](x[:1].expand(20, -1, -1, -1)), logits[:1].expand(20, -1))


def test_randomness_outside_the_global_generators_cannot_be_frozen() -> None:
    model = wrapped(Counting(), prediction=Prediction("frozen"))
    with pytest.raises(CannotEvaluate, match="cannot be frozen"):
        model.measure_randomness(first_images(4).x)


@pytest.mark.parametrize("rule", [Prediction("mean_logits", 5), Prediction("vote", 5), Prediction("frozen", seed=3)])
def test_a_deterministic_model_answers_the_same_under_every_rule_at_the_cost_of_one_pass(rule: Prediction) -> None:
    model, x = cnn(tile=8, prediction=rule), first_images(8).x
    assert not model.measure_randomness(x)
    assert model.rule == Prediction()
    with model.metering(8):
        assert torch.equal(model(x), cnn(tile=8)(x))
        assert torch.equal(model.predict(x)[0], cnn(tile=8).predict(x)[0])
        assert model.work()[0] == [2] * 8
