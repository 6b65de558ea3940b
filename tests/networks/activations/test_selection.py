"""The k-th largest value against sorting, and fused activations against their definitions in PyTorch operations."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kwbench.networks.activations import StochasticLwta
from kwbench.networks.activations.fused_operation import empty_like
from kwbench.networks.activations.kwta import kwta
from kwbench.networks.activations.lwta import lwta
from kwbench.networks.activations.selection import Floats, kth_largest
from support.tensors import LAYOUTS, same_bits

# Distributions with many equal or close values, made from standard normal ones.
KINDS: dict[str, Callable[[Floats], Floats]] = {
    "normal": lambda x: x,
    "many equal": lambda x: np.round(x * 2) / 2,
    "all equal": np.zeros_like,
    "half zero": lambda x: np.maximum(x, 0),
    "over many magnitudes": lambda x: np.exp((x * 20).clip(-85, 85)),
    "near zero": lambda x: (x * np.finfo(x.dtype).tiny).astype(x.dtype),
    "crowded below a gap": lambda x: np.where(x > 1.28, x + 100, x * 1e-3),
    "infinite above": lambda x: np.where(x > 0.5, np.inf, x),
    "infinite below": lambda x: np.where(x < 0.5, -np.inf, x),
    "largest numbers": lambda x: np.where(x > 0, np.finfo(x.dtype).max, -np.finfo(x.dtype).max),
    "half precision": lambda x: x.astype(np.float16).astype(x.dtype),
    "ascending": lambda x: np.sort(x, axis=1),
}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from([np.float32, np.float64]),
    b=st.integers(1, 6),
    n=st.one_of(st.integers(1, 30), st.integers(31, 20000)),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_selection_agrees_with_sorting(kind: str, dtype: type, b: int, n: int, share: float, seed: int) -> None:
    rows: NDArray[Any] = KINDS[kind](np.random.default_rng(seed).standard_normal((b, n)).astype(dtype)).astype(dtype)
    k = max(1, round(share * n))
    before = rows.copy()
    kth, surplus = kth_largest(rows, k)
    expected = np.sort(rows, axis=1)[:, n - k]
    assert kth.dtype == dtype
    np.testing.assert_array_equal(kth, expected)
    np.testing.assert_array_equal(surplus, (rows >= expected[:, None]).sum(axis=1) - k)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("place", [0, 1, 4999, 9999])
def test_selection_refuses_nan_at_every_position(place: int) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 10000)).astype(np.float32)
    rows[1, place] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        kth_largest(rows, 1000)


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode: under it, activations use their definition instead of one fused operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


def both(x: Tensor, activation: Callable[[Tensor], Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return values and gradients, in one operation and by the definition, with the same draws."""
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    results = []
    for watch in (False, True):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        with _Watching() if watch else nullcontext():  # type: ignore[no-untyped-call]
            out = activation(leaf)
        results.append((out.detach(), torch.autograd.grad(out, leaf, upstream)[0]))
    return results[0], results[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_one_operation_gives_the_values_and_gradients_of_the_definition_bit_for_bit(layout: str, dtype: torch.dtype) -> None:
    for kind in ("normal", "many equal", "half zero", "all equal", "crowded below a gap"):
        drawn = np.random.default_rng(2).standard_normal((3, 8 * 12 * 10)).astype(np.float32)
        x = LAYOUTS[layout](torch.from_numpy(KINDS[kind](drawn)).to(dtype).view(3, 8, 12, 10))
        n = x[0].numel()
        for k in (1, n // 10, n // 2, (9 * n) // 10, n):
            fast, plain = both(x, partial(kwta, k=k))
            assert same_bits(fast[0], plain[0])
            assert same_bits(fast[1], plain[1])
            assert (fast[0].stride() == x.stride()) == (x.is_contiguous() or layout == "channels_last")


def test_one_operation_takes_many_samples_in_blocks() -> None:
    fast, plain = both(torch.randn(70, 8, 32, 32), partial(kwta, k=819))
    assert same_bits(fast[0], plain[0])
    assert same_bits(fast[1], plain[1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
def test_lwta_in_one_operation_is_its_definition_bit_for_bit(layout: str, dtype: torch.dtype) -> None:
    for kind in ("normal", "many equal", "half zero", "all equal", "infinite below"):
        drawn = np.random.default_rng(2).standard_normal((3, 8 * 4 * 5)).astype(np.float32)
        x = LAYOUTS[layout](torch.from_numpy(KINDS[kind](drawn)).to(dtype).view(3, 8, 4, 5))
        activations: list[Callable[[Tensor], Tensor]] = [partial(lwta, units=units) for units in (1, 2, 3, 4, 20)]
        activations.append(StochasticLwta(2).eval())
        for activation in activations:
            fast, plain = both(x, activation)
            assert same_bits(fast[0], plain[0])
            assert same_bits(fast[1], plain[1])


def test_lwta_in_one_operation_takes_many_samples_in_blocks() -> None:
    x = torch.randn(70, 8, 32, 32)
    x[[0, 69], 3] = 0
    for activation in (partial(lwta, units=3), StochasticLwta(2).eval()):
        fast, plain = both(x, activation)
        assert same_bits(fast[0], plain[0])
        assert same_bits(fast[1], plain[1])


def test_a_survivor_that_is_zero_has_its_gradient() -> None:
    leaf = torch.tensor([[2.0, -0.0, -1.0, -2.0], [1.0, 2.0, 3.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(kwta(leaf, 3), leaf, torch.full((2, 4), 5.0))
    assert gradient.tolist() == [[5, 5, 5, 0], [5, 5, 5, 0]]


def test_second_derivatives_and_batched_gradients_go_through_k_wta() -> None:
    leaf = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    (first,) = torch.autograd.grad(kwta(leaf, 2).pow(3).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    assert second.tolist() == [[18, 0, 12]]
    jacobian = torch.autograd.functional.jacobian(lambda x: kwta(x, 2), leaf[0].detach().view(1, 3), vectorize=True)  # type: ignore[no-untyped-call]
    assert jacobian.view(3, 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert torch.func.grad(lambda x: kwta(x, 2).square().sum())(leaf.detach()).tolist() == [[6, 0, 4]]


def test_an_overwritten_output_has_no_gradient_as_with_relu() -> None:
    leaf = torch.randn(2, 6, requires_grad=True)
    out = kwta(leaf, 2)
    out += 1
    with pytest.raises(RuntimeError, match="inplace"):
        out.sum().backward()  # type: ignore[no-untyped-call]


def test_k_wta_runs_in_inference_mode() -> None:
    x = torch.randn(4, 100)
    expected = kwta(x, 10)
    with torch.inference_mode():
        assert torch.equal(kwta(x.clone(), 10), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_large_outputs_have_the_memory_layout_of_pytorchs(dtype: torch.dtype) -> None:
    for shape in ((3, 4), (2, 16, 300, 300)):
        for layout in (torch.contiguous_format, torch.channels_last):
            like = torch.empty(shape, dtype=dtype)
            like = like.to(memory_format=layout) if len(shape) == 4 else like
            fresh = empty_like(like)
            assert fresh.shape == like.shape
            assert fresh.stride() == like.stride()
            assert fresh.dtype == dtype
            assert fresh.data_ptr() % 64 == 0
            assert not fresh._is_view()
            fresh.fill_(1)
            assert bool((fresh == 1).all())
