"""Stochastic LWTA: frequencies of winners, relaxed samples and the divergence."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from kwbench.errors import UsageError
from kwbench.networks.activations import (
    StochasticLwta,
    activation_factory,
    stochastic_divergence,
)


def stochastic_lwta(**options: Any) -> StochasticLwta:
    layer = StochasticLwta(**options)
    layer.eval()
    return layer


@pytest.mark.parametrize("units", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_winners_are_drawn_with_the_frequencies_of_softmax(units: int, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    # Far apart, to test rare winners: half precision has few values near probability 1.
    values = torch.linspace(-2.1, 4.0, units).to(dtype)
    draws = 200_000
    out = stochastic_lwta(units=units)(values.expand(draws, units))
    wins = (out != 0).sum(dim=0)
    assert int(wins.sum()) == draws
    expected = values.double().softmax(dim=0) * draws
    assert chisquare(wins.numpy(), expected.numpy()).pvalue > 0.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 6), (5, 4, 7, 3), (40, 16, 32, 32), (0, 4, 2, 2)])
def test_relaxed_samples_have_the_same_bits_with_and_without_a_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = stochastic_lwta(sampling="relaxed")
    x = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(4))).to(dtype)
    if len(x):
        x.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    torch.manual_seed(5)
    with_gradient = layer(x.clone().requires_grad_()).detach()
    drawn_next = torch.rand(1)
    torch.manual_seed(5)
    with torch.no_grad():
        without = layer(x)
    assert torch.equal(without.nan_to_num(7.0), with_gradient.nan_to_num(7.0))
    assert torch.equal(without.isnan(), with_gradient.isnan())
    assert torch.equal(torch.rand(1), drawn_next)


@pytest.mark.parametrize("units", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_relaxed_sample_at_a_small_temperature_has_the_same_winners(units: int, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    values = torch.linspace(-1.1, 3.0, units).to(dtype)
    draws = 100_000
    out = stochastic_lwta(units=units, sampling="relaxed", temperature=0.01)(values.expand(draws, units))
    assert out.dtype == dtype
    mask = out.float() / values.float()
    assert torch.allclose(mask.sum(dim=1), torch.ones(draws), atol=1e-5 if dtype == torch.float32 else 0.02)
    assert (mask.amax(dim=1) > 0.99).float().mean() > 0.95
    wins = torch.bincount(mask.argmax(dim=1), minlength=units)
    assert chisquare(wins.numpy(), (values.double().softmax(dim=0) * draws).numpy()).pvalue > 0.001


@pytest.mark.parametrize("shape", [(5, 12), (2, 12, 3, 4)])
@pytest.mark.parametrize("units", [2, 3, 4, 6])
def test_exactly_one_unit_of_each_block_passes_its_value_at_each_position(shape: tuple[int, ...], units: int) -> None:
    torch.manual_seed(4)
    x = torch.randn(shape)
    for given_x in (x, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x):
        out = stochastic_lwta(units=units)(given_x)
        passed = out != 0
        assert torch.equal(out[passed], x[passed])
        assert bool((passed.unflatten(1, (-1, units)).sum(dim=2) == 1).all())


def test_positions_and_blocks_draw_independently() -> None:
    torch.manual_seed(5)
    out = stochastic_lwta()(torch.ones(4, 6, 8, 8))
    first = out[:, 0::2].flatten()
    assert 0.4 < first.mean() < 0.6
    assert abs(np.corrcoef(out[:, 0].flatten(), out[:, 2].flatten())[0, 1]) < 0.2


@pytest.mark.parametrize("sampling", ["hard", "relaxed"])
def test_every_call_draws_new_numbers_and_a_seed_repeats_them(sampling: str) -> None:
    layer = stochastic_lwta(sampling=sampling)
    x = torch.randn(4, 32)
    torch.manual_seed(6)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(6)
    assert torch.equal(layer(x), first)


def test_the_mean_of_many_hard_draws_is_the_value_times_its_probability() -> None:
    torch.manual_seed(7)
    x = torch.tensor([1.5, -0.5, 0.7, 0.2, -2.0, 1.0])
    mean = stochastic_lwta(units=3)(x.expand(100_000, 6)).mean(dim=0)
    expected = (x.view(2, 3) * x.view(2, 3).softmax(dim=1)).flatten()
    assert torch.allclose(mean, expected, atol=0.015)


def test_the_gradient_of_a_hard_draw_is_its_mask() -> None:
    torch.manual_seed(8)
    leaf = torch.randn(3, 8, requires_grad=True)
    out = stochastic_lwta(units=4)(leaf)
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(gradient, (out != 0).float())


@pytest.mark.parametrize("shape", [(5, 6), (2, 6, 3, 3)])
def test_training_samples_by_eq_7_at_its_temperature_and_computes_the_divergence_of_eq_8(shape: tuple[int, ...]) -> None:
    units = 3
    layer = StochasticLwta(units=units)
    assert layer.train_temperature == 0.67
    torch.manual_seed(9)
    x = torch.randn(shape, requires_grad=True)
    torch.manual_seed(10)
    out = layer(x)
    # Eq. 7, by hand and in double precision, from the same uniform numbers.
    torch.manual_seed(10)
    blocks = x.detach().double().reshape(shape[0], 2, units, *shape[2:])
    uniform = torch.rand(blocks.shape).double()
    gumbel = -(-uniform.log()).log()
    probabilities = blocks.exp() / blocks.exp().sum(dim=2, keepdim=True)
    exponents = ((probabilities.log() + gumbel) / 0.67).exp()
    mask = exponents / exponents.sum(dim=2, keepdim=True)
    assert torch.allclose(out.double(), (blocks * mask).reshape(shape), atol=1e-5)
    # Eq. 8: log q - log p at the relaxed sample; p = 1 / units.
    log_q = (mask * probabilities.log()).sum()
    log_p = (mask * torch.full_like(mask, 1 / units).log()).sum()
    assert layer.kl.shape == ()
    assert layer.kl.item() == pytest.approx(((log_q - log_p) / shape[0]).item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(layer.kl, x)
    assert gradient.abs().sum() > 0
    assert layer.train_temperature != layer.temperature


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_noise_stays_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(11)
    layer = StochasticLwta()
    x = torch.zeros(2000, 64, dtype=dtype) + 1
    assert bool(layer(x).isfinite().all())
    layer.sampling = "relaxed"
    assert bool(layer.eval()(x).isfinite().all())


def test_the_divergence_of_a_network_sums_its_layers() -> None:
    network = torch.nn.Sequential(StochasticLwta(), torch.nn.ReLU(), StochasticLwta())
    network(torch.randn(4, 6))
    first, _, last = network
    assert isinstance(first, StochasticLwta)
    assert isinstance(last, StochasticLwta)
    assert stochastic_divergence(network).item() == pytest.approx(first.kl.item() + last.kl.item())
    assert stochastic_divergence(torch.nn.ReLU()) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 1}, "units: 1"),
        ({"units": 2.5}, "units: 2.5"),
        ({"units": "2"}, "units: '2'"),
        ({"units": True}, "units: True"),
        ({"temperature": 0}, "temperature"),
        ({"train_temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"sampling": "soft"}, "neither 'hard' nor 'relaxed'"),
    ],
)
def test_stochastic_lwta_refuses_impossible_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        activation_factory("stochastic_lwta", options)


def test_stochastic_lwta_refuses_channels_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="7 channels do not divide into blocks of 2"):
        StochasticLwta()(torch.ones(1, 7))
