"""Planned batch sizes: only faster ones with identical bits are used."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kwbench.gradients import Relaxed
from kwbench.networks.activations.kwta import Kwta
from kwbench.networks.activations.lwta import Lwta
from kwbench.randomness import SampleRandom
from support.modules import Deep, Watched, input_gradient
from support.small_models import first_images, trained_cnn, wrapped


def test_few_rows_pass_in_smaller_batches_with_the_same_bits() -> None:
    x = first_images(50).x
    whole = wrapped(Deep().to(memory_format=torch.channels_last), tile=32)  # type: ignore[call-overload]
    logits, gradient = whole(x), input_gradient(whole, x)
    module = Watched(Deep())
    model = wrapped(module, tile=32)
    model.plan_passes(x[:20])
    assert not module.sizes, "trials wait until they are needed"
    sizes = [model.batch_sizes(gradients=gradients) for gradients in (False, True)]
    assert max(batch_sizes[-1] for batch_sizes in sizes) < 32, (
        "on this machine no smaller batch has equal bits, so the test checks nothing"
    )
    for rows in (torch.arange(3), torch.arange(40, 50), torch.arange(44), torch.arange(1), torch.arange(20, 37)):
        module.sizes.clear()
        with torch.no_grad():
            assert torch.equal(model(x[rows]), logits[rows])
        assert set(module.sizes) <= set(sizes[0])
        module.sizes.clear()
        assert torch.equal(input_gradient(model, x[rows]), gradient[rows])
        assert set(module.sizes) <= set(sizes[1])
    module.sizes.clear()
    input_gradient(model, x[:1])
    assert module.sizes == [sizes[1][-1]]


class Busy(nn.Module):
    """Advances a fake clock by a time that depends on the number of rows."""

    def __init__(self, module: nn.Module, seconds: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.module, self.seconds, self.now = module, seconds, 0.0
        monkeypatch.setattr(time, "process_time", lambda: self.now)

    def forward(self, x: Tensor) -> Tensor:
        self.now += self.seconds(len(x))
        logits: Tensor = self.module(x)
        return logits


def test_batches_larger_than_a_tile_are_used_if_faster_and_bit_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    x = first_images(300).x
    whole = wrapped(Deep().to(memory_format=torch.channels_last), tile=32)  # type: ignore[call-overload]
    module = Watched(Busy(Deep(), lambda rows: 0.02, monkeypatch))
    model = wrapped(module, tile=32)
    model.plan_passes(x[:32])
    assert model.batch_sizes(gradients=False)[0] == model.batch_sizes(gradients=True)[0] == 128
    with torch.no_grad():
        assert torch.equal(model(x), whole(x))
        assert module.sizes[-3:-1] == [128, 128]
    assert torch.equal(input_gradient(model, x), input_gradient(whole, x))
    assert module.sizes[-3:-1] == [128, 128]


def test_batches_larger_than_a_tile_are_not_used_if_no_faster_per_row_or_if_a_tile_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = first_images(64).x
    for seconds in (lambda rows: rows / 2000, lambda rows: 0.06):
        model = wrapped(Busy(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), seconds, monkeypatch), tile=16)
        model.plan_passes(x)
        assert model.batch_sizes(gradients=False)[0] == model.batch_sizes(gradients=True)[0] == 16


def test_batches_are_limited_to_tiles_to_save_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = first_images(300).x
    module = Watched(Busy(Deep(), lambda rows: 0.02, monkeypatch))
    model = wrapped(module, tile=32)
    model.plan_passes(x[:32])
    gradient = input_gradient(model, x)
    assert max(module.sizes) == 128
    assert model.use_smaller_batches()
    module.sizes.clear()
    assert torch.equal(input_gradient(model, x), gradient)
    assert max(module.sizes) == 32
    assert not model.use_smaller_batches(), "a second call changes nothing"


class Waiting(nn.Module):
    """Works as long for few rows as for many; a full tile also waits, as if other processes used the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 32:
            time.sleep(0.1)
        sum(range(100_000))
        return x.flatten(1)[:, 20:30].round()


def test_waiting_for_the_cpu_does_not_make_a_batch_size_look_slow() -> None:
    module = Watched(Waiting())
    model = wrapped(module, tile=32)
    model.plan_passes(first_images(32).x)
    assert len(model.batch_sizes(gradients=False)) > 1
    module.sizes.clear()
    with torch.no_grad():
        model(first_images(31).x)
    assert max(module.sizes) >= 16


class Backwards(torch.autograd.Function):
    """The identity, whose gradients round differently at every batch size."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 + len(gradient) / 2**20)


@pytest.mark.parametrize(
    ("rounding", "forward"),
    [
        (lambda x: x * (1 + len(x) / 2**20), [32]),
        (lambda x: x * (1 + (len(x) if torch.is_grad_enabled() else 0) / 2**20), [32, 16, 8, 4, 2, 1]),
        (Backwards.apply, [32, 16, 8, 4, 2, 1]),
    ],
    ids=["forward", "forward under autograd", "backward"],
)
def test_a_module_that_rounds_differently_at_every_batch_size_gets_full_tiles_only(rounding: Any, forward: list[int]) -> None:
    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(rounding(x)).flatten(1)[:, :10]

    model = wrapped(Rounding(), tile=32)
    x = first_images(40).x
    model.plan_passes(x)
    sizes = model.batch_sizes(gradients=False)
    # If smaller batches agree, larger ones do too, and may be faster.
    assert [size for size in sizes if size <= 32] == forward
    assert sizes == forward or len(forward) > 1
    assert model.batch_sizes(gradients=True) == [32]
    assert torch.equal(input_gradient(model, x)[:3], input_gradient(model, x[:3]))


def test_a_module_that_accepts_one_batch_size_or_has_no_gradients_still_runs() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(16, 64)[:, :10]

    class Unreachable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :10]

    x = first_images(20).x
    for module, expected in ((Fixed(), [16]), (Unreachable(), [16, 8, 4, 2, 1])):
        model = wrapped(module, tile=16)
        model.plan_passes(x)
        for gradients in (False, True):
            sizes = model.batch_sizes(gradients=gradients)
            assert [size for size in sizes if size <= 16] == expected
            assert sizes == expected or len(expected) > 1
        assert torch.equal(model(x), x.flatten(1)[:, :10])


def test_measured_batch_sizes_apply_to_the_deterministic_module_only(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Watched(Busy(trained_cnn(), lambda rows: 0.02, monkeypatch))
    model = wrapped(module, tile=16)
    model.plan_passes(first_images(16).x)
    assert len(model.batch_sizes(gradients=False)) > 1
    module.sizes.clear()
    with torch.no_grad(), model.replacing_forward(lambda network, x: (network(x), 1)):
        model(first_images(2).x)
    assert module.sizes == [16]
    model.stochastic = True
    model.plan_passes(first_images(16).x)
    assert model.batch_sizes(gradients=False) == [16]


def first_logit(logits: Tensor) -> Tensor:
    return logits[:, 0][None]


@pytest.mark.parametrize("activation", [Kwta(0.2), Lwta(0.5)], ids=["k-WTA", "LWTA"])
def test_relaxed_passes_of_few_rows_use_smaller_batches_with_the_same_bits(activation: nn.Module) -> None:
    x, rng = first_images(40).x, SampleRandom(0, "relaxed", ())
    gradient = Relaxed()
    network = Deep(activation).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    whole = gradient(wrapped(network, tile=32), x, first_logit, rng).gradients[0]
    module = Watched(Deep(activation))
    model = wrapped(module, tile=32)
    model.plan_passes(x[:32])
    model(x[:32])
    module.sizes.clear()
    few = [gradient(model, x[:3], first_logit, rng).gradients[0] for _ in range(12)]
    assert all(torch.equal(part, whole[:3]) for part in few)
    assert module.sizes[:8] == [32] * 8
    assert module.sizes[-1] < 32
    assert torch.equal(gradient(model, x, first_logit, rng).gradients[0], whole)
