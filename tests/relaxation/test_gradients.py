"""Relaxed backward passes: the module's exact output, and gradients that point uphill."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defences.hiding import HIDING, HIDING_AND_RANDOM, N
from defences.spellings import KWTA
from kwbench.networks.activations import Kwta
from kwbench.relaxation import relaxed, survey
from support.relaxation import EVERY_WAY, FunctionModule, evaluate, gradient, rows, seeded, smoothed_gradient

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "strided": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_output_is_that_of_the_module_bit_for_bit(way: str, form: str) -> None:
    module, x = FunctionModule(EVERY_WAY[way]), FORMS[form](rows())
    expected = seeded(evaluate, module, x)
    assert torch.equal(seeded(relaxed, module, x.clone().requires_grad_()), expected)
    assert torch.equal(seeded(relaxed, module, x), expected)


@pytest.mark.parametrize("way", EVERY_WAY)
def test_the_gradient_points_uphill_on_the_smoothed_function(way: str) -> None:
    module, x = FunctionModule(EVERY_WAY[way]), rows()
    copies = 200 if way in HIDING_AND_RANDOM else 1
    width = evaluate(module, x).shape[1]
    weights = torch.randn(len(x), width, generator=torch.Generator().manual_seed(3))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        mean_gradient = (
            gradient(module, x.repeat(copies, 1), weights=weights.repeat(copies, 1)).view(copies, *x.shape).mean(dim=0)
        )
    assert bool(mean_gradient.isfinite().all())
    assert bool((mean_gradient != 0).any(dim=1).all())
    cosines = F.cosine_similarity(mean_gradient, smoothed_gradient(module, x, weights), dim=1)
    assert cosines.mean() > (0.4 if way in ("logic", "first in order") else 0.6)


@pytest.mark.parametrize("way", HIDING)
def test_the_gradient_of_a_sample_does_not_depend_on_the_rest_of_the_batch(way: str) -> None:
    module, x = FunctionModule(HIDING[way]), rows()
    together = gradient(module, x)
    for other in (rows(seed=7), 100 * rows(seed=8)):
        torch.testing.assert_close(gradient(module, torch.cat([x[:2], other]))[:2], together[:2])
    torch.testing.assert_close(torch.cat([gradient(module, row) for row in x.split(1)]), together)  # type: ignore[no-untyped-call]


def test_the_gradient_of_a_sample_is_its_own_if_other_dimensions_are_flattened_into_the_batch() -> None:
    def folded(x: Tensor) -> Tensor:
        blocks = x.view(-1, 2)  # (3b, 2)
        return (blocks * torch.softmax(blocks / 0.01, dim=1)).view(x.shape)

    x = rows()
    larger_batch = torch.cat([x[:2], 100 * rows(seed=8)])
    torch.testing.assert_close(gradient(FunctionModule(folded), larger_batch)[:2], gradient(FunctionModule(folded), x)[:2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", ["sign", "table", "writes into a view", "top members", "saturated sigmoid", "rank", "no_grad"])
def test_gradients_have_the_float_type_of_the_input(way: str, dtype: torch.dtype) -> None:
    module, x = FunctionModule(HIDING[way]), rows().to(dtype)
    output = relaxed(module, x.clone().requires_grad_())
    assert torch.equal(output, evaluate(module, x))
    relaxed_gradient = gradient(module, x, weights=torch.ones(N, dtype=output.dtype))
    assert relaxed_gradient.dtype == dtype
    assert bool((relaxed_gradient != 0).any())


def test_saturated_fused_attention_is_relaxed() -> None:
    def attend(x: Tensor) -> Tensor:
        query = x.view(-1, 1, N, 1)
        return F.scaled_dot_product_attention(100 * query, query, query).view(x.shape)

    module, x = FunctionModule(attend), rows()
    weights = torch.randn(8, N, generator=torch.Generator().manual_seed(3))
    assert torch.equal(relaxed(module, x.clone().requires_grad_()), module(x))
    cosines = F.cosine_similarity(gradient(module, x, weights=weights), smoothed_gradient(module, x, weights), dim=1)
    assert cosines.mean() > 0.5
    assert [relaxation.operation for relaxation in survey(module, x).relaxed if "attention" in relaxation.operation]


def test_all_spellings_of_an_activation_have_the_same_gradient() -> None:
    x = torch.randn(3, 40, 4, 4, generator=torch.Generator().manual_seed(0))
    gradients = [gradient(nn.Sequential(way(0.1), nn.Flatten()), x) for way in (*KWTA.values(), Kwta)]
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


@pytest.mark.parametrize("gamma", ["1/8", "1/4", "1/2"])
def test_the_gradient_of_a_k_wta_sample_does_not_depend_on_ties_in_other_samples(gamma: str) -> None:
    x = rows()
    tied = torch.ones_like(x)
    alone = gradient(Kwta(gamma), x)
    for neighbours in (tied, x.flip(0)):
        together = gradient(Kwta(gamma), torch.cat([x[:4], neighbours[4:]]))
        assert torch.equal(together[:4], alone[:4])
