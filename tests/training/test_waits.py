"""Training on a GPU reads its losses every 50 steps, and ends with the same weights and curve as if it read them at once."""

from typing import Any

import pytest
import torch

from kwbench.data import DataSet
from kwbench.errors import CannotEvaluate
from kwbench.training import Epoch, train
from kwbench.training import loop as loops
from support.training import KINDS, bits, entry, quiet
from support.waits import counting_waits


class Late(loops._Loop):
    """Reads as rarely as on a GPU."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._read_every = loops._READ_EVERY


@pytest.mark.parametrize("kind", ["adversarial", "free", "mixture"])
def test_reading_rarely_changes_neither_weights_nor_curve(kind: str, few: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    activation, recipe = KINDS[kind]

    def trained() -> tuple[dict[str, bytes], list[tuple[float, float]]]:
        epochs: list[Epoch] = []
        module = train(entry(activation, **recipe), few, epochs.append)
        return bits(module), [(epoch.loss, epoch.accuracy) for epoch in epochs]

    at_once = trained()
    monkeypatch.setattr(loops, "_Loop", Late)
    assert trained() == at_once


@pytest.mark.parametrize(
    "recipe", [{"adversarial": {"eps": 0.2, "steps": 2, "step_size": 0.1}}, {"fast": {"eps": 0.2}, "flip": True}]
)
def test_no_step_waits_for_a_gpu(recipe: dict[str, Any], few: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fourteen more batches an epoch add no wait."""
    monkeypatch.setattr(loops, "_Loop", Late)

    def waits(batch_size: int) -> int:
        # PyTorch's optimiser reads what it keeps on the CPU.
        monkeypatch.setattr("torch.optim.SGD.step", _plain_step)
        with counting_waits(monkeypatch) as counted:
            train(entry(epochs=1, batch_size=batch_size, **recipe), few, quiet)
        return sum(counted.values())

    assert waits(10) == waits(40)


def _plain_step(optimiser: torch.optim.SGD, closure: object = None) -> None:
    with torch.no_grad():
        for group in optimiser.param_groups:
            for weights in group["params"]:
                weights.sub_(weights.grad, alpha=group["lr"])


def test_a_loss_that_is_not_finite_ends_the_training_before_it_is_saved(few: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_Loop", Late)
    curves: list[Any] = []
    with pytest.raises(CannotEvaluate, match="the loss is not finite in epoch 1"):
        train(entry(learning_rate=1e30, epochs=3), few, quiet, curve=curves.append)
    assert not curves
