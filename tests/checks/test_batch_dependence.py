"""Answers that depend on the batch are found, whatever the padding, and images are then asked one at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kwbench import evaluate
from kwbench.checks.state import depends_on_the_batch
from support.small_models import Refusing, first_images, trained_cnn, wrapped

CONDITIONS: dict[str, Callable[[int], Tensor]] = {
    "alone": lambda n: torch.tensor([n == 1] * n),
    "fewer than eight": lambda n: torch.tensor([n < 8] * n),
    "an odd number": lambda n: torch.tensor([n % 2 == 1] * n),
    "the last": lambda n: torch.arange(n) == n - 1,
}


class BySize(nn.Module):
    """Answers with a network where a condition on the batch holds, otherwise with the class of the nearest stored image."""

    x: Tensor
    y: Tensor

    def __init__(self, network: nn.Module, condition: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.network, self.condition = network, condition
        stored = first_images(16)
        self.register_buffer("x", stored.x.flatten(1))
        self.register_buffer("y", torch.nn.functional.one_hot(stored.y, 10).float())

    def forward(self, x: Tensor) -> Tensor:
        nearest = self.y[torch.cdist(x.flatten(1), self.x, p=torch.inf).argmin(dim=1)]
        return torch.where(self.condition(len(x))[:, None], self.network(x), nearest)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_answers_that_depend_on_the_batch_are_found(condition: str) -> None:
    model = wrapped(BySize(trained_cnn(), CONDITIONS[condition]))
    assert depends_on_the_batch(model, first_images(16).x).any()


@pytest.mark.parametrize("network", [trained_cnn(), Refusing(trained_cnn())], ids=["plain", "refusing"])
def test_answers_of_ordinary_networks_do_not(network: nn.Module) -> None:
    assert not depends_on_the_batch(wrapped(network), first_images(16).x).any()


def test_the_robust_accuracy_is_that_of_images_asked_one_at_a_time() -> None:
    batch = first_images(16)
    results = {
        name: evaluate(BySize(trained_cnn(), CONDITIONS[name]), batch.x, batch.y, attacks=["pgd"], eps="0.15").summary
        for name in ("alone", "the last")
    }
    plain = evaluate(trained_cnn(), batch.x, batch.y, attacks=["pgd"], eps="0.15").summary
    assert plain.a_rob is not None
    for name, summary in results.items():
        assert summary.a_rob is not None
        assert summary.a_rob.value == pytest.approx(plain.a_rob.value, abs=0.07), name
    assert plain.a_rob.value < 0.5
