"""Recorded passes, with a stand-in for CUDA graphs whose replays also overwrite the memory of earlier ones."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kwbench.model import Model
from kwbench.model.cuda_graphs import Computation, RecordedPass, find_recorder
from support.small_models import first_images, wrapped


class Graphs:
    """Records as a GPU does, counts replays, and has a fake clock: a replay takes `cost` times the time of a pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float = 0.5) -> None:
        self.replays, self.now, self.rate, self.cost = 0, 0.0, 1.0, cost
        monkeypatch.setattr("kwbench.model.pass_plan.find_recorder", lambda _: self.record)
        monkeypatch.setattr("time.process_time", lambda: self.now)

    def record(self, computations: Sequence[Computation]) -> list[tuple[Callable[[], None], Tensor]]:
        return [self._recorded(computation) for computation in computations]

    def _recorded(self, compute: Computation) -> tuple[Callable[[], None], Tensor]:
        result = compute().clone()

        def replay() -> None:
            self.replays += 1
            with torch.set_grad_enabled(gradients), self._quick():
                result.copy_(compute())

        gradients = torch.is_grad_enabled()
        return replay, result

    @contextmanager
    def _quick(self) -> Any:
        self.rate = self.cost
        yield
        self.rate = 1.0


class Timed(nn.Module):
    """Advances the fake clock by a second."""

    def __init__(self, graphs: Graphs) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.graphs = graphs
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SELU(), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, x: Tensor) -> Tensor:
        self.graphs.now += self.graphs.rate
        logits: Tensor = self.layers(x)
        return logits


def measured_model(module: nn.Module, images: Tensor) -> Model:
    model = wrapped(module, tile=16)
    model.plan_passes(images)
    return model


def gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(call(leaf).square().sum(), leaf)[0]


def test_a_replay_has_the_bits_of_its_pass_even_after_other_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    module = Timed(graphs)
    one, other = first_images(16).x, first_images(32).x[16:]
    recorded = RecordedPass(module, one, graphs.record, gradients=True)
    leaves = [images.clone().requires_grad_() for images in (one, other)]
    logits = [recorded(leaf) for leaf in leaves]
    for leaf, output in zip(leaves, logits, strict=True):
        assert torch.equal(output, module(leaf))
        expected = gradient(module, leaf.detach())
        # The second pass overwrote the first, and every gradient is computed twice.
        for _ in range(2):
            assert torch.equal(torch.autograd.grad(output.square().sum(), leaf, retain_graph=True)[0], expected)


def test_a_gradient_right_after_its_pass_needs_no_second_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    x = first_images(16).x
    recorded = RecordedPass(Timed(graphs), x, graphs.record, gradients=True)
    gradient(recorded, x)
    assert graphs.replays == 2


def test_without_gradients_logits_outlive_the_next_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    module = Timed(graphs)
    one, other = first_images(16).x, first_images(32).x[16:]
    with torch.no_grad():
        recorded = RecordedPass(module, one, graphs.record, gradients=False)
        first = recorded(one)
        recorded(other)
        assert torch.equal(first, module(one))


def test_replayed_logits_and_gradients_equal_computed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    batch = first_images(40)
    plain, model = (measured_model(Timed(graphs), batch.x) for _ in range(2))
    plain.use_smaller_batches()
    for size in (40, 7):
        x = batch.x[:size]
        with torch.no_grad():
            assert torch.equal(model(x), plain(x))
        assert torch.equal(gradient(model, x), gradient(plain, x))
    # Two trials of three replays of each kind, and the passes of the two sizes.
    assert graphs.replays > 12


def assert_is_tried_and_no_more(module: Timed) -> None:
    x = first_images(16).x
    model = measured_model(module, x)
    gradient(model, x)
    tried = module.graphs.replays
    gradient(model, x)
    assert tried
    assert module.graphs.replays == tried


@pytest.mark.parametrize("cost", [1.0, 2.0])
def test_a_recording_that_is_not_faster_is_not_replayed(monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    assert_is_tried_and_no_more(Timed(Graphs(monkeypatch, cost)))


class Remembering(Timed):
    """Depends on a counter in Python, which a replay does not advance."""

    def __init__(self, graphs: Graphs) -> None:
        super().__init__(graphs)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.graphs.rate == 1.0
        return super().forward(x) + self.calls


def test_a_recording_with_other_bits_is_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_is_tried_and_no_more(Remembering(Graphs(monkeypatch)))


def test_a_module_that_cannot_be_recorded_is_tried_once_and_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    batch = first_images(16)
    asked = []

    def refuse(computations: Sequence[Computation]) -> Any:
        asked.append(len(computations))
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("kwbench.model.pass_plan.find_recorder", lambda _: refuse)
    module = Timed(graphs)
    model = measured_model(module, batch.x)
    for _ in range(2):
        assert torch.equal(gradient(model, batch.x), gradient(module, batch.x))
    assert asked == [2]


def test_limiting_memory_drops_the_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = Graphs(monkeypatch)
    batch = first_images(16)
    model = measured_model(Timed(graphs), batch.x)
    gradient(model, batch.x)
    before = graphs.replays
    assert model.use_smaller_batches()
    gradient(model, batch.x)
    assert graphs.replays == before
    assert not model.use_smaller_batches()


def test_a_cpu_records_nothing() -> None:
    assert find_recorder(torch.device("cpu")) is None
