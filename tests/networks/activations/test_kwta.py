"""k-WTA against its definition by sorting."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kwbench.errors import UsageError
from kwbench.networks.activations import (
    Kwta,
    activation_factory,
)
from kwbench.networks.activations.kwta import kwta
from support.tensors import LAYOUTS, same_bits


def winners(row: list[float], k: int) -> list[int]:
    """Return the indices of the k largest values of a row, by sorting; ties go to the smaller index."""
    return sorted(sorted(range(len(row)), key=lambda index: (-row[index], index))[:k])


def kwta_by_sorting(x: Tensor, k: int) -> Tensor:
    out = torch.zeros_like(x.reshape(len(x), -1))
    for row, values in enumerate(x.reshape(len(x), -1)):
        kept = winners(values.tolist(), k)
        out[row, kept] = values[kept]
    return out.view(x.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_kwta_keeps_exactly_the_k_largest_in_every_memory_layout(layout: str, dtype: torch.dtype, tied: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 6)
    x = LAYOUTS[layout]((x.mul(2).round() if tied else x).to(dtype))
    for k in (1, 2, 37, 119, 120):
        assert same_bits(kwta(x, k), kwta_by_sorting(x, k))
        # Count survivors by gradients, because the value of a survivor may itself be zero.
        leaf = x.clone().requires_grad_()
        (mask,) = torch.autograd.grad(kwta(leaf, k).sum(), leaf)
        assert mask.flatten(1).sum(dim=1).tolist() == [k] * 3


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 40).flatmap(
        lambda n: st.lists(
            st.lists(
                st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("inf"), float("-inf"), 3e38, -2.5, 1e-45]),
                min_size=n,
                max_size=n,
            ),
            min_size=1,
            max_size=4,
        )
    ),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_kwta_agrees_with_sorting_on_rows_full_of_ties_zeros_and_infinities(
    rows: list[list[float]], share: float, dtype: torch.dtype
) -> None:
    x = torch.tensor(rows).to(dtype)
    k = max(1, int(share * x.shape[1]))
    before = x.clone()
    output = kwta(x, k)
    for row, values in enumerate(x.tolist()):
        kept = winners(values, k)
        assert same_bits(output[row, kept], x[row, kept])
        assert same_bits(output[row].index_fill(0, torch.tensor(kept), 0), torch.zeros_like(output[row]))
    assert same_bits(x, before), "the input was modified"


def test_kwta_breaks_ties_by_the_smaller_index_even_between_the_two_zeros() -> None:
    assert kwta(torch.full((1, 6), 2.0), 2).tolist() == [[2, 2, 0, 0, 0, 0]]
    leaf = torch.tensor([[-1.0, -0.0, 0.0, -0.0, 0.0]], requires_grad=True)
    (mask,) = torch.autograd.grad(kwta(leaf, 2).sum(), leaf)
    assert mask.tolist() == [[0, 1, 1, 0, 0]]
    values = torch.tensor([[1.0, 3.0, 3.0, 3.0], [3.0, 1.0, 0.0, 3.0], [5.0, 4.0, 3.0, 2.0]])
    assert kwta(values, 2).tolist() == [[0, 3, 3, 0], [3, 0, 0, 3], [5, 4, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kwta_refuses_nan_even_if_another_row_is_all_ties(dtype: torch.dtype) -> None:
    for row in range(2):
        for position in range(4):
            x = torch.ones(2, 4, dtype=dtype)
            x[row, position] = float("nan")
            for k in (1, 3, 4):
                with pytest.raises(ValueError, match="NaN"):
                    kwta(x, k)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_kwta_refuses_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="not between 1 and 4"):
        kwta(torch.ones(2, 4), k)


@pytest.mark.parametrize(
    ("gamma", "n", "k"),
    [
        (0.1, 10, 1),
        (0.3, 10, 3),  # 0.3 * 10 is 3.0000000000000004 in one rounding and 2.9999 in another
        (0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        ("1/3", 3, 1),
        (Fraction(1, 3), 9, 3),
        ("1/3", 8, 2),
        (0.1, 9, 1),  # at least one
        (0.001, 5, 1),
        (1, 7, 7),
        ("0.58", 100, 58),
    ],
)
def test_kwta_takes_gamma_as_an_exact_fraction_of_the_sample(gamma: Any, n: int, k: int) -> None:
    x = torch.arange(1.0, n + 1).repeat(2, 1)
    assert int((Kwta(gamma)(x) != 0).sum()) == 2 * k


def test_kwta_counts_over_channels_and_positions_together() -> None:
    x = torch.zeros(1, 4, 5, 5)
    x[0, 2] = torch.arange(1.0, 26.0).view(5, 5)
    out = Kwta(0.1)(x)
    assert int((out[0, 2] != 0).sum()) == 10
    assert int((out != 0).sum()) == 10


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kwta_within_channels_selects_in_each_channel_separately(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer, x = Kwta(0.1, within="channel"), torch.randn(3, 4, 5, 6)
    leaf = x.to(memory_format=memory_format).requires_grad_()
    out = layer(leaf)
    expected = torch.stack([torch.stack([kwta(plane.reshape(1, 30), 3).view(5, 6) for plane in image]) for image in x])
    assert torch.equal(out, expected)
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(gradient != 0, expected != 0)
    assert torch.equal(layer(x[:, :, 0, 0]), kwta(x[:, :, 0, 0], 1)), "without width and height, k-WTA selects among all values"


def test_kwta_refuses_to_select_within_anything_but_images_or_channels() -> None:
    with pytest.raises(UsageError, match="within: 'row' is not one of image, channel"):
        activation_factory("kwta", {"gamma": 0.1, "within": "row"})


def test_kwta_passes_gradients_to_the_survivors_only() -> None:
    leaf = torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, -2.0]], requires_grad=True)
    upstream = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    (gradient,) = torch.autograd.grad((kwta(leaf, 2) * upstream).sum(), leaf)
    assert gradient.tolist() == [[10, 0, 30], [40, 50, 0]]


def test_kwta_accepts_an_empty_batch() -> None:
    assert Kwta(0.5)(torch.zeros(0, 4, 2, 2)).shape == (0, 4, 2, 2)
