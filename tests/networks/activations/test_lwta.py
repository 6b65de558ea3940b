"""LWTA against its definition, written as a loop."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kwbench.networks.activations import (
    Lwta,
)
from kwbench.networks.activations.lwta import lwta


def lwta_by_loops(x: Tensor, units: int) -> Tensor:
    out = torch.zeros_like(x)
    for start in range(0, x.shape[1], units):
        group = x[:, start : start + units]
        for index in np.ndindex(group.shape[0], *group.shape[2:]):
            values = [group[(index[0], unit, *index[1:])].item() for unit in range(group.shape[1])]
            winner = values.index(max(values))
            out[(index[0], start + winner, *index[1:])] = values[winner]
    return out


@pytest.mark.parametrize("units", [1, 2, 3, 5, 7, 8, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lwta_passes_one_unit_of_each_group_at_each_position_and_the_last_group_may_be_smaller(
    units: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    for tied in (False, True):
        x = torch.randn(2, 8, 3, 2)
        x = (x.round() if tied else x).to(dtype)
        expected = lwta_by_loops(x, units)
        assert torch.equal(lwta(x, units), expected)
        assert torch.equal(lwta(x.contiguous(memory_format=torch.channels_last), units), expected)
        assert torch.equal(lwta(x[:, :, 0, 0], units), expected[:, :, 0, 0])


def test_lwta_keeps_value_and_sign_of_the_winner_and_breaks_ties_by_the_first() -> None:
    x = torch.tensor([[-3.0, -1.0, 2.0, 2.0, 0.0, -0.0, -5.0]])
    leaf = x.clone().requires_grad_()
    out = lwta(leaf, 2)
    assert out.tolist() == [[0, -1, 2, 0, 0, 0, -5]]
    (mask,) = torch.autograd.grad(out.sum(), leaf)
    assert mask.tolist() == [[0, 1, 1, 0, 1, 0, 1]]
    assert torch.equal(leaf.detach(), x)


def test_lwta_refuses_nan_and_empty_groups() -> None:
    with pytest.raises(ValueError, match="NaN"):
        lwta(torch.tensor([[1.0, 1.0, float("nan"), 0.0]]), 2)
    with pytest.raises(ValueError, match="not positive"):
        lwta(torch.ones(1, 4), 0)


@pytest.mark.parametrize(
    ("gamma", "units", "channels", "share"),
    [
        (0.2, 5, 10, Fraction(1, 5)),
        (0.2, 5, 16, Fraction(4, 16)),
        (0.1, 10, 64, Fraction(7, 64)),
        (0.5, 2, 3, Fraction(2, 3)),
        (0.3, 3, 9, Fraction(1, 3)),
        (0.4, 2, 4, Fraction(1, 2)),  # 2.5 rounds to even
        ("2/7", 4, 8, Fraction(1, 4)),  # 3.5 rounds to even
        (0.01, 100, 8, Fraction(1, 8)),
        (1, 1, 8, Fraction(1)),
    ],
)
def test_lwta_reports_the_share_of_values_that_survive(gamma: Any, units: int, channels: int, share: Fraction) -> None:
    layer = Lwta(gamma)
    assert layer.units == units
    assert layer.effective_sparsity(channels) == share
    survivors = (layer(torch.rand(3, channels, 2, 2) + 1) != 0).sum().item()
    assert Fraction(survivors, 12 * channels) == share
