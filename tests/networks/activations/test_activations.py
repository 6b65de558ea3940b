"""What the activations let through, held against definitions written out naively."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor, nn

from kwbench.errors import UsageError
from kwbench.networks.activations import (
    Kwta,
    Lwta,
    StochasticLwta,
    activation_factory,
    effective_sparsity,
    stochastic_divergence,
)
from kwbench.networks.activations.kwta import kwta
from kwbench.networks.activations.lwta import lwta


def winners(row: list[float], k: int) -> list[int]:
    """The k largest of a row, ties to the smaller index, by sorting."""
    return sorted(sorted(range(len(row)), key=lambda index: (-row[index], index))[:k])


def naive_kwta(x: Tensor, k: int) -> Tensor:
    out = torch.zeros_like(x.reshape(len(x), -1))
    for row, values in enumerate(x.reshape(len(x), -1)):
        kept = winners(values.tolist(), k)
        out[row, kept] = values[kept]
    return out.view(x.shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit, the sign of zero too."""
    as_integers = {4: torch.int32, 2: torch.int16, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(as_integers), b.contiguous().view(as_integers))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second of a larger tensor": lambda x: x.repeat_interleave(2, dim=3)[:, :, :, ::2],
    "an expanded batch": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_kwta_keeps_exactly_the_k_largest_in_logical_order_whatever_the_memory_format(
    layout: str, dtype: torch.dtype, tied: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 6)
    x = LAYOUTS[layout]((x.mul(2).round() if tied else x).to(dtype))
    for k in (1, 2, 37, 119, 120):
        assert same_bits(kwta(x, k), naive_kwta(x, k))
        # Counted apart from the values: a survivor may itself be zero.
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
    found = kwta(x, k)
    for row, values in enumerate(x.tolist()):
        kept = winners(values, k)
        assert same_bits(found[row, kept], x[row, kept])
        assert same_bits(found[row].index_fill(0, torch.tensor(kept), 0), torch.zeros_like(found[row]))
    assert same_bits(x, before), "the input was modified"


def test_kwta_gives_ties_to_the_smaller_index_even_between_the_two_zeros() -> None:
    assert kwta(torch.full((1, 6), 2.0), 2).tolist() == [[2, 2, 0, 0, 0, 0]]
    leaf = torch.tensor([[-1.0, -0.0, 0.0, -0.0, 0.0]], requires_grad=True)
    (mask,) = torch.autograd.grad(kwta(leaf, 2).sum(), leaf)
    assert mask.tolist() == [[0, 1, 1, 0, 0]]
    values = torch.tensor([[1.0, 3.0, 3.0, 3.0], [3.0, 1.0, 0.0, 3.0], [5.0, 4.0, 3.0, 2.0]])
    assert kwta(values, 2).tolist() == [[0, 3, 3, 0], [3, 0, 0, 3], [5, 4, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kwta_refuses_nan_also_where_another_row_is_all_ties(dtype: torch.dtype) -> None:
    for row in range(2):
        for place in range(4):
            x = torch.ones(2, 4, dtype=dtype)
            x[row, place] = float("nan")
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
        (0.3, 10, 3),  # 0.3 * 10 is 3.0000000000000004 one way and 2.9999 another
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
def test_kwta_within_channels_lets_the_values_of_each_compete_among_themselves(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer, x = Kwta(0.1, within="channel"), torch.randn(3, 4, 5, 6)
    leaf = x.to(memory_format=memory_format).requires_grad_()
    out = layer(leaf)
    expected = torch.stack([torch.stack([kwta(plane.reshape(1, 30), 3).view(5, 6) for plane in image]) for image in x])
    assert torch.equal(out, expected)
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(gradient != 0, expected != 0)
    assert torch.equal(layer(x[:, :, 0, 0]), kwta(x[:, :, 0, 0], 1)), "without width and height all values are one competition"


def test_kwta_competes_within_images_or_channels() -> None:
    with pytest.raises(UsageError, match="within: 'row' is not one of image, channel"):
        activation_factory("kwta", {"gamma": 0.1, "within": "row"})


def test_kwta_passes_gradients_to_the_survivors_alone() -> None:
    leaf = torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, -2.0]], requires_grad=True)
    upstream = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    (gradient,) = torch.autograd.grad((kwta(leaf, 2) * upstream).sum(), leaf)
    assert gradient.tolist() == [[10, 0, 30], [40, 50, 0]]


def test_kwta_takes_an_empty_batch() -> None:
    assert Kwta(0.5)(torch.zeros(0, 4, 2, 2)).shape == (0, 4, 2, 2)


@pytest.mark.parametrize("gamma", [0, -0.1, 1.01, "2", "0/5"])
@pytest.mark.parametrize("kind", [Kwta, Lwta])
def test_gamma_must_lie_above_0_and_at_most_at_1(kind: type, gamma: Any) -> None:
    with pytest.raises(ValueError, match=r"gamma: .* is not in \(0, 1\]"):
        kind(gamma)


@pytest.mark.parametrize("gamma", ["1/0", "a tenth", float("nan"), float("inf"), True, None, [0.1], "1e999999999"])
@pytest.mark.parametrize("kind", [Kwta, Lwta])
def test_gamma_must_be_a_number(kind: type, gamma: Any) -> None:
    with pytest.raises(ValueError, match=r"gamma: .* is not a number"):
        kind(gamma)


# Local winner-take-all


def naive_lwta(x: Tensor, units: int) -> Tensor:
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
def test_lwta_lets_one_of_each_group_pass_at_each_position_the_remainder_being_a_smaller_group(
    units: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    for tied in (False, True):
        x = torch.randn(2, 8, 3, 2)
        x = (x.round() if tied else x).to(dtype)
        expected = naive_lwta(x, units)
        assert torch.equal(lwta(x, units), expected)
        assert torch.equal(lwta(x.contiguous(memory_format=torch.channels_last), units), expected)
        assert torch.equal(lwta(x[:, :, 0, 0], units), expected[:, :, 0, 0])


def test_lwta_keeps_value_and_sign_of_the_winner_and_gives_ties_to_the_first() -> None:
    x = torch.tensor([[-3.0, -1.0, 2.0, 2.0, 0.0, -0.0, -5.0]])
    leaf = x.clone().requires_grad_()
    out = lwta(leaf, 2)
    assert out.tolist() == [[0, -1, 2, 0, 0, 0, -5]]
    (mask,) = torch.autograd.grad(out.sum(), leaf)
    assert mask.tolist() == [[0, 1, 1, 0, 1, 0, 1]]
    assert torch.equal(leaf.detach(), x)


def test_lwta_refuses_nan_and_groups_of_nothing() -> None:
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
def test_lwta_says_how_much_really_survives(gamma: Any, units: int, channels: int, share: Fraction) -> None:
    layer = Lwta(gamma)
    assert layer.units == units
    assert layer.effective_sparsity(channels) == share
    survivors = (layer(torch.rand(3, channels, 2, 2) + 1) != 0).sum().item()
    assert Fraction(survivors, 12 * channels) == share


# Stochastic local winner-take-all


def evaluating(**options: Any) -> StochasticLwta:
    layer = StochasticLwta(**options)
    layer.eval()
    return layer


@pytest.mark.parametrize("units", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_winners_are_drawn_with_the_frequencies_of_softmax(units: int, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    # Far apart, so that a rare winner shows: half precision knows few probabilities near 1.
    values = torch.linspace(-2.1, 4.0, units).to(dtype)
    draws = 200_000
    out = evaluating(units=units)(values.expand(draws, units))
    wins = (out != 0).sum(dim=0)
    assert int(wins.sum()) == draws
    expected = values.double().softmax(dim=0) * draws
    assert chisquare(wins.numpy(), expected.numpy()).pvalue > 0.001


@pytest.mark.parametrize("units", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_relaxed_sample_at_a_small_temperature_has_the_same_winners(units: int, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    values = torch.linspace(-1.1, 3.0, units).to(dtype)
    draws = 100_000
    out = evaluating(units=units, sampling="relaxed", temperature=0.01)(values.expand(draws, units))
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
        out = evaluating(units=units)(given_x)
        passed = out != 0
        assert torch.equal(out[passed], x[passed])
        assert bool((passed.unflatten(1, (-1, units)).sum(dim=2) == 1).all())


def test_positions_and_blocks_draw_independently() -> None:
    torch.manual_seed(5)
    out = evaluating()(torch.ones(4, 6, 8, 8))
    first = out[:, 0::2].flatten()
    assert 0.4 < first.mean() < 0.6
    assert abs(np.corrcoef(out[:, 0].flatten(), out[:, 2].flatten())[0, 1]) < 0.2


@pytest.mark.parametrize("sampling", ["hard", "relaxed"])
def test_every_call_draws_afresh_and_the_seed_repeats_it(sampling: str) -> None:
    layer = evaluating(sampling=sampling)
    x = torch.randn(4, 32)
    torch.manual_seed(6)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(6)
    assert torch.equal(layer(x), first)


def test_the_mean_of_many_hard_draws_is_the_value_times_its_probability() -> None:
    torch.manual_seed(7)
    x = torch.tensor([1.5, -0.5, 0.7, 0.2, -2.0, 1.0])
    mean = evaluating(units=3)(x.expand(100_000, 6)).mean(dim=0)
    expected = (x.view(2, 3) * x.view(2, 3).softmax(dim=1)).flatten()
    assert torch.allclose(mean, expected, atol=0.015)


def test_the_gradient_of_a_hard_draw_is_its_mask() -> None:
    torch.manual_seed(8)
    leaf = torch.randn(3, 8, requires_grad=True)
    out = evaluating(units=4)(leaf)
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(gradient, (out != 0).float())


@pytest.mark.parametrize("shape", [(5, 6), (2, 6, 3, 3)])
def test_training_relaxes_at_its_temperature_and_keeps_the_divergence_of_eq_8(shape: tuple[int, ...]) -> None:
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


# By name


def test_unknown_activations_and_parameters_come_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="'kwtaa' is unknown; did you mean 'kwta'"):
        activation_factory("kwtaa", {})
    with pytest.raises(UsageError, match="no parameter 'gama'; did you mean 'gamma'"):
        activation_factory("kwta", {"gama": 0.1})
    with pytest.raises(UsageError, match="'kwta' needs the parameter 'gamma'"):
        activation_factory("kwta", {})
    with pytest.raises(UsageError, match="gamma: 2 is not in"):
        activation_factory("lwta", {"gamma": 2})


def test_every_call_of_a_factory_makes_a_module_of_its_own() -> None:
    make = activation_factory("stochastic_lwta", {"units": 4})
    first, second = make(), make()
    assert isinstance(first, StochasticLwta)
    assert first.units == 4
    assert first is not second


def test_activations_print_their_parameters() -> None:
    assert "gamma=1/10" in str(Kwta(0.1))
    assert "gamma=1/10, within=channel" in str(Kwta(0.1, "channel"))
    assert "gamma=1/5, units=5" in str(Lwta(0.2))
    assert "units=2, sampling='hard'" in str(StochasticLwta())


def test_effective_sparsity_is_what_really_survives_each_layer() -> None:
    network = nn.Sequential(Kwta("0.3"), Lwta("0.3"), nn.ReLU(), StochasticLwta(2), Kwta("0.3", "channel"))
    shares = effective_sparsity(network, torch.rand(2, 10, 2, 2))
    # 12 of 40 values; groups of three leave one of ten channels alone, so four survive; one of two; one of four.
    assert shares == {"0": Fraction(12, 40), "1": Fraction(4, 10), "3": Fraction(1, 2), "4": Fraction(1, 4)}


def test_a_module_without_winners_passes_nothing_to_count_them() -> None:
    assert effective_sparsity(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.rand(2, 10, 2, 2)) == {}
