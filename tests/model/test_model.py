"""The model: rows that do not depend on each other, correct counts of passes, and randomness detected by trial."""

import platform
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwbench.errors import CannotEvaluate
from kwbench.model import Prediction, keep_freed_memory
from support.small_models import Noisy, cnn, first_images, trained_cnn, wrapped


class Deep(nn.Module):
    """Convolutions wide enough for batch sizes to change the last bits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn((48, 1, 3, 3), generator=generator) / 3)
        self.second = nn.Parameter(torch.randn((48, 48, 3, 3), generator=generator) / 20)
        self.last = nn.Parameter(torch.randn((10, 48 * 64), generator=generator) / 50)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.conv2d(F.conv2d(x, self.first, padding=1).relu(), self.second, padding=1).relu()
        return F.linear(hidden.flatten(1), self.last)


def _gradient(model: Any, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).logsumexp(dim=1).sum(), leaf)
    return gradient


def test_logits_and_gradient_of_a_row_are_bit_identical_in_every_batch() -> None:
    model, x = wrapped(Deep(), tile=16), first_images(50).x
    logits, gradient = model(x), _gradient(model, x)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for rows in (order, order[:17], order[:1], torch.arange(30, 46)):
        assert torch.equal(model(x[rows]), logits[rows])
        assert torch.equal(_gradient(model, x[rows]), gradient[rows])


def test_without_tiles_of_equal_size_the_last_bits_differ() -> None:
    """Otherwise the test above would pass for any model."""
    x = first_images(50).x
    bare = wrapped(Deep(), tile=50)
    small = torch.cat([wrapped(Deep(), tile=size)(x) for size in (50,)])
    differs = any(not torch.equal(wrapped(Deep(), tile=size)(x), bare(x)) for size in (1, 2, 3, 5, 7))
    assert torch.equal(small, bare(x))
    assert differs


class Watched(nn.Module):
    """Records the size of every batch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.sizes = module, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        logits: Tensor = self.module(x)
        return logits


def test_few_rows_pass_in_smaller_batches_with_the_same_bits() -> None:
    x = first_images(50).x
    whole = wrapped(Deep().to(memory_format=torch.channels_last), tile=32)  # type: ignore[call-overload]
    logits, gradient = whole(x), _gradient(whole, x)
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
        assert torch.equal(_gradient(model, x[rows]), gradient[rows])
        assert set(module.sizes) <= set(sizes[1])
    module.sizes.clear()
    _gradient(model, x[:1])
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
    assert torch.equal(_gradient(model, x), _gradient(whole, x))
    assert module.sizes[-3:-1] == [128, 128]


def test_batches_larger_than_a_tile_are_not_used_if_no_faster_per_row_or_if_a_tile_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = first_images(64).x
    for seconds in (lambda rows: rows / 2000, lambda rows: 0.06):
        model = wrapped(Busy(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), seconds, monkeypatch), tile=16)
        model.plan_passes(x)
        assert model.batch_sizes(gradients=False)[0] == model.batch_sizes(gradients=True)[0] == 16


def test_batches_can_be_limited_to_tiles_to_save_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x = first_images(300).x
    module = Watched(Busy(Deep(), lambda rows: 0.02, monkeypatch))
    model = wrapped(module, tile=32)
    model.plan_passes(x[:32])
    gradient = _gradient(model, x)
    assert max(module.sizes) == 128
    assert model.limit_to_tiles()
    module.sizes.clear()
    assert torch.equal(_gradient(model, x), gradient)
    assert max(module.sizes) == 32
    assert not model.limit_to_tiles(), "a second call changes nothing"


class Laid(nn.Module):
    """A convolution that records whether its images and weights have channels last."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.seen = change, list[tuple[bool, bool]]()
        self.convolution = nn.Conv2d(3, 10, 8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.convolution.weight
        self.seen.append(tuple(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, weight)))  # type: ignore[arg-type]
        logits: Tensor = self.convolution(self.change(x)).flatten(1)
        return logits


def in_memory_order(x: Tensor) -> Tensor:
    """The values in memory order, as foreign code may read them."""
    return x.as_strided(x.shape, (192, 64, 8, 1))


@pytest.mark.parametrize(
    ("change", "last"),
    [(lambda x: x, True), (in_memory_order, False), (lambda x: x.view(len(x), -1).view(x.shape), False)],
    ids=["logical order", "order in memory", "view"],
)
def test_channels_last_is_used_if_it_changes_no_logit(change: Callable[[Tensor], Tensor], last: bool) -> None:
    module = Laid(change)
    model = wrapped(module, tile=8, shape=(3, 8, 8))
    x = torch.rand((9, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    before = model(x)
    model.plan_passes(x)
    assert not any(any(layouts) for layouts in module.seen)
    torch.testing.assert_close(model(x), before)
    module.seen.clear()
    _gradient(model, x[:3])
    assert set(module.seen) == {(last, last)}


def test_a_stochastic_module_keeps_its_memory_layout() -> None:
    module = Laid(lambda x: x)
    model = wrapped(module, tile=8, shape=(3, 8, 8))
    model.stochastic = True
    model.plan_passes(torch.rand(9, 3, 8, 8))
    model(torch.rand(9, 3, 8, 8))
    assert set(module.seen) == {(False, False)}


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
    assert torch.equal(_gradient(model, x)[:3], _gradient(model, x[:3]))


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


def test_measured_batch_sizes_apply_to_the_deterministic_module_only() -> None:
    module = Watched(trained_cnn())
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


def test_a_search_in_bfloat16_rounds_and_ends_with_its_block() -> None:
    class Image(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.ones(10, 2, 8, 8)).flatten(1)

    class Vector(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.view(len(x), -1), torch.ones(10, 128))  # fails with channels last

    x = torch.rand((6, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    for module in (Image(), Vector()):
        model = wrapped(module, tile=8, shape=(2, 8, 8))
        model.plan_passes(x)
        exact = model(x)
        with model.computing_in("bfloat16"):
            rough, gradient = model(x), _gradient(model, x)
            assert torch.equal(model(x[2:3]), rough[2:3])
        assert rough.dtype == gradient.dtype == torch.float32
        assert not torch.equal(rough, exact)
        torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
        assert torch.equal(model(x), exact)


class Refusing(nn.Module):
    """Works in float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained_cnn()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("float32, please")
        logits: Tensor = self.network(x)
        return logits


class Astray(Refusing):
    """Predicts other classes in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).float()
        return logits.roll(1, dims=1) if torch.is_autocast_enabled("cpu") else logits


@pytest.mark.parametrize(
    ("module", "has", "tolerates"),
    [(trained_cnn, True, True), (trained_cnn, False, False), (Refusing, True, False), (Astray, True, False)],
)
def test_bfloat16_is_tolerated_only_if_device_and_module_allow_it(
    module: Callable[[], nn.Module], has: bool, tolerates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwbench.model.search_precision.has_bfloat16", lambda device: has)
    model = wrapped(module(), tile=16)
    assert model.tolerates_bfloat16(first_images(40).x) is tolerates
    model.stochastic = True
    assert not model.tolerates_bfloat16(first_images(40).x)


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
        _gradient(model, x)
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
    _gradient(model, first_images(8).x)
    assert all(not weight.requires_grad and weight.grad is None for weight in module.parameters())
    assert isinstance(module[0], nn.BatchNorm2d)
    assert module[0].num_batches_tracked is not None
    assert int(module[0].num_batches_tracked) == 0


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        noise = torch.from_numpy(np.random.default_rng(np.random.randint(2**31)).normal(size=x.shape)).float()
        logits: Tensor = trained_cnn()(x + 0.1 * noise)
        return logits


class PythonNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = trained_cnn()(x + 0.1 * random.random())
        return logits


class Dropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = trained_cnn()(F.dropout(x, 0.2, training=True))
        return logits


class Counting(nn.Module):
    """Deterministic, but for a state that changes from call to call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = trained_cnn()(x) * self.calls
        return logits


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
    """Answers with the logits given, one row of them a pass, whatever the image."""

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


def test_a_vote_with_a_nan_draw_is_not_finite() -> None:
    model = wrapped(Chosen([0.0, 1.0], [0.0, 1.0], [0.0, torch.nan]), classes=2, prediction=Prediction("vote", 3))
    model.stochastic = True
    assert not model.predict(first_images(2).x)[1].any()
    assert [len(output) for output in model.predict(first_images(0).x)] == [0, 0]


def test_a_vote_has_a_gradient_to_search_by() -> None:
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
    # One of the answers that the random module gives, the same noise for every image.
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


def test_work_is_counted_row_by_row() -> None:
    model, x = cnn(tile=4), first_images(6).x
    with model.metering(6):
        model(x)
        model(x[:2], torch.tensor([5, 1]))
        leaf = x[:1].clone().requires_grad_()
        logits = model(leaf, torch.tensor([3]))
        for index in range(3):
            torch.autograd.grad(logits[0, index], leaf, retain_graph=True)
        assert model.work() == ([1, 2, 1, 2, 1, 2], [0, 0, 0, 3, 0, 0])
        model(x[:3])  # without rows: shared equally, rounded up
        assert model.work()[0] == [2, 3, 2, 3, 2, 3]


def test_a_model_can_be_called_without_metering() -> None:
    cnn()(first_images(2).x, torch.tensor([0, 7]))


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
    slope = _gradient(model, x)
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_freed_memory_is_reused_without_page_faults() -> None:
    keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [torch.ones(5 << 20) for _ in range(8)]
        assert len(kept) == 8
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < 1000, "8 tensors of 5120 pages"
