"""The model: rows independent of the batch, accepted outputs, and the range of logits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kwbench.errors import CannotEvaluate
from support.modules import Deep, input_gradient
from support.small_models import cnn, first_images, wrapped


def test_logits_and_gradient_of_a_row_are_bit_identical_in_every_batch() -> None:
    model, x = wrapped(Deep(), tile=16), first_images(50).x
    logits, gradient = model(x), input_gradient(model, x)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:17], order[:1], torch.arange(30, 46)):
        assert torch.equal(model(x[rows]), logits[rows])
        assert torch.equal(input_gradient(model, x[rows]), gradient[rows])


def test_without_tiles_of_equal_size_the_last_bits_differ() -> None:
    """Otherwise the test above would pass for any model."""
    x = first_images(50).x
    bare = wrapped(Deep(), tile=50)
    small = torch.cat([wrapped(Deep(), tile=size)(x) for size in (50,)])
    differs = any(not torch.equal(wrapped(Deep(), tile=size)(x), bare(x)) for size in (1, 2, 3, 5, 7))
    assert torch.equal(small, bare(x))
    assert differs


def test_a_module_that_writes_into_its_input_does_not_change_the_images() -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(0.5)
            return x.flatten(1)[:, :10]

    model = wrapped(Writing(), tile=4)
    for count in (4, 3):
        x = first_images(count).x
        before = x.clone()
        model(x)
        input_gradient(model, x)
        assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.flatten(1)[:, :9], "9 classes"),
        (lambda x: x.flatten(1)[:1, :10], "must return logits"),
        (lambda x: x, "must return logits"),
        (lambda x: (x.flatten(1)[:, :10],), "tuple"),
        (lambda x: x.flatten(1)[:, :10].long(), "floating point"),
    ],
)
def test_output_that_is_no_logits_is_refused_with_the_reason(answer: Any, message: str) -> None:
    class Answering(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return answer(x)

    with pytest.raises(CannotEvaluate, match=message):
        wrapped(Answering())(first_images(3).x)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(CannotEvaluate, match=r"\(1, 9, 9\)"):
        cnn()(torch.zeros(2, 1, 9, 9))


def test_weights_get_no_gradients_and_batch_norm_does_not_learn() -> None:
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    model = wrapped(module)
    input_gradient(model, first_images(8).x)
    assert all(not weight.requires_grad and weight.grad is None for weight in module.parameters())
    assert isinstance(module[0], nn.BatchNorm2d)
    assert module[0].num_batches_tracked is not None
    assert int(module[0].num_batches_tracked) == 0


def test_a_non_finite_answer_is_never_counted_correct() -> None:
    class Blank(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), torch.nan) + 0 * x.flatten(1)[:, :10]

    correct, finite = wrapped(Blank()).count_correct(first_images(4).x, torch.zeros(4, dtype=torch.long), 3)
    assert correct.tolist() == [0] * 4
    assert finite.tolist() == [False] * 4


@pytest.mark.parametrize("scale", [1.0, 1e-60, 1e60])
def test_float64_logits_keep_their_order_and_gradients_at_any_scale(scale: float) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scale * x.double().flatten(1)[:, 20:30] @ torch.eye(10, dtype=torch.float64)

    x = first_images(8).x + torch.arange(64).view(8, 8) / 1000
    model = wrapped(Scaled())
    expected = x.flatten(1)[:, 20:30]
    predicted, finite = model.predict(x)
    assert torch.equal(predicted, expected.argmax(dim=1))
    assert bool(finite.all())
    slope = input_gradient(model, x)
    assert bool(slope.isfinite().all())
    assert bool((slope != 0).flatten(1)[:, 20:30].all())


def test_float64_logits_within_the_range_of_float32_are_only_rounded() -> None:
    model = wrapped(nn.Sequential(nn.Flatten(), Doubled()))
    x = first_images(8).x
    assert torch.equal(model(x), x.flatten(1)[:, :10])
    infinite = wrapped(nn.Sequential(nn.Flatten(), Doubled(torch.inf)))
    assert not infinite.predict(x + 1)[1].any(), "infinity stays infinite"


class Doubled(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :10].double() * self.scale


def test_an_empty_batch_gives_empty_logits() -> None:
    assert cnn()(torch.zeros(0, 1, 8, 8)).shape == (0, 10)
