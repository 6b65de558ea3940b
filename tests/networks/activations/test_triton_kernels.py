"""The Triton kernels select what the definition on a CPU selects; here they run in Triton's interpreter, or on a GPU."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kwbench.networks.activations import StochasticLwta, on_gpu
from kwbench.networks.activations.kwta import kwta
from kwbench.networks.activations.lwta import lwta
from support.tensors import LAYOUTS, same_bits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="Triton is not installed: pip install 'kwbench[triton]'")

NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, float("inf"), float("-inf"), 3e38, -2.5, 1e-45, -1e-45)
DTYPES = [torch.float32, torch.bfloat16]


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    result = function(leaf)
    return result.detach().cpu(), torch.autograd.grad(result, leaf, weights)[0].cpu()


def agree(on_cpu: Callable[[Tensor], Tensor], by_kernel: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Require the same bits of results and gradients."""
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    expected, passed = gradient_of(on_cpu, x, weights)
    result, gradient = gradient_of(by_kernel, x.to(DEVICE), weights.to(DEVICE))
    assert same_bits(result, expected)
    assert same_bits(gradient, passed)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_kwta_selects_as_on_a_cpu_with_ties_and_extreme_values(data: Any, dtype: torch.dtype) -> None:
    n = data.draw(st.integers(1, 40))
    rows = data.draw(st.lists(st.lists(st.sampled_from(NUMBERS), min_size=n, max_size=n), min_size=1, max_size=3))
    k = data.draw(st.integers(1, n))
    agree(lambda x: kwta(x, k), lambda x: on_gpu.kwta(x, k), torch.tensor(rows).to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_kwta_selects_as_on_a_cpu_in_every_memory_layout(layout: str, dtype: torch.dtype, tied: bool) -> None:
    x = torch.randn(2, 7, 9, 10, generator=torch.Generator().manual_seed(0))
    x = LAYOUTS[layout]((x.mul(2).round() if tied else x).to(dtype))
    for k in (1, 63, 629):
        agree(lambda x, k=k: kwta(x, k), lambda x, k=k: on_gpu.kwta(x, k), x)  # type: ignore[misc]


def test_kwta_selects_as_on_a_cpu_where_several_programs_share_a_sample() -> None:
    x = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0)).mul(8).round()
    agree(lambda x: kwta(x, 4500), lambda x: on_gpu.kwta(x, 4500), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lwta_selects_as_on_a_cpu(layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0)).mul(2).round().to(dtype))
    for units in (1, 2, 3, 8):
        agree(lambda x, units=units: lwta(x, units), lambda x, units=units: on_gpu.lwta(x, units), x)  # type: ignore[misc]
    agree(lambda x: lwta(x, 3), lambda x: on_gpu.lwta(x, 3), x[:, :, 0, 0].contiguous())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("units", [2, 3])
def test_stochastic_lwta_draws_the_winners_of_the_formula(
    layout: str, dtype: torch.dtype, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = StochasticLwta(units).eval()
    x = LAYOUTS[layout](torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)).to(DEVICE)
    weights = torch.ones_like(x)
    answers = []
    for by_kernel in (False, True):
        # The formula that the kernel replaces on a GPU.
        monkeypatch.setattr("kwbench.networks.activations.stochastic_lwta.can_fuse", lambda x: False)
        monkeypatch.setattr(on_gpu, "can_run", lambda x, by_kernel=by_kernel: by_kernel)
        torch.manual_seed(5)
        answers.append(gradient_of(layer, x, weights))
    torch.testing.assert_close(answers[1], answers[0], atol=0, rtol=0)
    assert int((answers[1][1] != 0).sum()) == x.numel() // units


def test_nan_makes_what_it_competes_with_nan() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 4.0], [3.0, float("nan"), 2.0, 4.0], [-float("nan"), 1.0, 2.0, 4.0]], device=DEVICE)
    assert on_gpu.kwta(x, 2).isnan().all(dim=1).tolist() == [False, True, True]
    groups = on_gpu.lwta(x, 2).isnan().tolist()
    assert groups == [[False] * 4, [True, True, False, False], [True, True, False, False]]


@pytest.mark.parametrize("function", [lambda x: on_gpu.kwta(x, 3), lambda x: on_gpu.lwta(x, 2)])
def test_gradients_of_gradients_and_batches_of_gradients_pass(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5, -1.0, 2.0]], device=DEVICE, requires_grad=True)
    result = function(x.square())
    (gradient,) = torch.autograd.grad(result.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.equal(second, 2.0 * (result != 0))
    leaf = x.detach().requires_grad_()
    batched = torch.autograd.grad(function(leaf), leaf, torch.eye(6, device=DEVICE)[:, None], is_grads_batched=True)[0]
    assert torch.equal(batched.squeeze(1).diagonal(), (function(leaf)[0] != 0).float())


def test_the_formula_is_used_where_there_is_no_gpu() -> None:
    assert not on_gpu.can_run(torch.zeros(2, 3))


# Compilation for a GPU needs none. What the interpreter accepts may still not compile.
COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from kwbench.networks.activations import triton_kernels as kernels

TYPES = {name: "*bf16" for name in ("x", "gradient", "out")} | {"mask": "*u8", "counts": "*i32", "nans": "*i32"}
TYPES |= {"limits": "*fp32", "draws": "*fp32", "winners": "*i16"}

def build(kernel, **constants):
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    print(kernel.__name__)

selection = {"CHANNELS": 64, "VALUES": 2, "INDICES": 2, "BLOCK": 1024}
build(kernels._count_digits, LEVEL=1, **selection)
build(kernels._count_digits, LEVEL=3, **selection)
build(kernels._write_largest, **selection)
build(kernels._pass_winners, BLOCK=1024)
for last in (False, True):
    build(kernels._compete, UNITS=3, CHANNELS_LAST=last, DRAWN=last, BLOCK=512)
    build(kernels._pass_to_winners, UNITS=3, CHANNELS_LAST=last, BLOCK=512)
"""


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_HOME": str(tmp_path)}
    process = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert len(process.stdout.split()) == 8
