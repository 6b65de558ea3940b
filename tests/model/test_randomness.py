"""Randomness from any source is detected and can be repeated."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.modules import Counting, Dropout, NumpyNoise, PythonNoise
from support.small_models import cnn, first_images, trained_cnn, wrapped


@pytest.fixture(autouse=True)
def trained_before_it_runs_without_gradients() -> None:
    trained_cnn()


@pytest.mark.parametrize("kind", [NumpyNoise, PythonNoise, Dropout, Counting])
def test_randomness_of_any_source_is_detected(kind: type[nn.Module]) -> None:
    model = wrapped(kind())
    assert model.measure_randomness(first_images(8).x)
    assert model.stochastic


@pytest.mark.parametrize("kind", [NumpyNoise, PythonNoise, Dropout])
def test_reseeding_repeats_randomness_and_leaves_the_global_generators_alone(kind: type[nn.Module]) -> None:
    model, x = wrapped(kind()), first_images(8).x
    model.stochastic = True
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    answers = []
    for place in ("here", "here", "there"):
        model.reseed(0, place)
        answers.append(torch.stack([model(x), model(x)]))
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0][0], answers[0][1]), "every pass is a draw of its own"


def test_a_deterministic_model_is_detected() -> None:
    for model in (cnn(), wrapped(nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 10)))):
        assert not model.measure_randomness(first_images(8).x)


def test_models_that_draw_nothing_pass_less_often() -> None:
    passes = []

    class Watched(nn.Module):
        def __init__(self, noise: float) -> None:
            super().__init__()
            self.noise = noise

        def forward(self, x: Tensor) -> Tensor:
            passes.append(len(x))
            logits: Tensor = trained_cnn()(x)
            return logits + 0.0 * torch.rand(1) if self.noise else logits

    batches = [first_images(8).x] * 4
    assert not wrapped(Watched(0.0)).measure_randomness(*batches)
    assert len(passes) == 4 * 2 + 4
    passes.clear()
    assert not wrapped(Watched(1.0)).measure_randomness(*batches)
    assert len(passes) == 4 * 5


def test_randomness_that_few_images_meet_is_detected_in_any_batch() -> None:
    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = trained_cnn()(x)
            noise = 0.1 * torch.rand(len(x), 1) * (x.flatten(1).amax(dim=1, keepdim=True) < 0.2)
            return logits + noise

    bright, dark = first_images(8).x, 0.1 * first_images(8).x
    assert not wrapped(Rare()).measure_randomness(bright)
    assert wrapped(Rare()).measure_randomness(bright, bright, dark)


def test_nan_neither_counts_as_randomness_nor_hides_it() -> None:
    class Broken(nn.Module):
        def __init__(self, noise: float) -> None:
            super().__init__()
            self.noise = noise

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = trained_cnn()(x) + self.noise * torch.rand(len(x), 1)
            logits[:, 3] = torch.nan
            return logits

    assert not wrapped(Broken(0.0)).measure_randomness(first_images(4).x)
    assert wrapped(Broken(1.0)).measure_randomness(first_images(4).x)
