"""Conditions under which images pass with channels last."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from support.modules import input_gradient
from support.small_models import wrapped


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
    input_gradient(model, x[:3])
    assert set(module.seen) == {(last, last)}


def test_a_stochastic_module_keeps_its_memory_layout() -> None:
    module = Laid(lambda x: x)
    model = wrapped(module, tile=8, shape=(3, 8, 8))
    model.stochastic = True
    model.plan_passes(torch.rand(9, 3, 8, 8))
    model(torch.rand(9, 3, 8, 8))
    assert set(module.seen) == {(False, False)}


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("order", [(0, 2, 3, 1), (3, 2, 1, 0)], ids=["channels last", "reversed"])
def test_a_module_that_flattens_by_view_gets_images_of_any_layout(order: tuple[int, ...], stochastic: bool) -> None:
    class Viewing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), -1)[:, :10]

    model = wrapped(Viewing(), tile=8, shape=(3, 8, 8))
    model.stochastic = stochastic
    x = torch.rand((8, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    back = [order.index(axis) for axis in range(4)]
    strided = x.permute(order).contiguous().permute(back)
    assert not strided.is_contiguous()
    model.plan_passes(strided)
    torch.testing.assert_close(model(strided), x.flatten(1)[:, :10])
    assert input_gradient(model, strided).shape == x.shape
