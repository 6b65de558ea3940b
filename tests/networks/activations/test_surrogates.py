"""Surrogates by another activation on the same weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from kwbench.config.suite import override, suite_of
from kwbench.errors import NotApplicable, UsageError
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.request import Request
from kwbench.networks.activations import Kwta, Lwta, StochasticLwta
from kwbench.networks.activations.surrogates import Swap, swap_activations

REGISTRY = Path(__file__).resolve().parents[3] / "registry.yaml"
KINDS = Swap.__args__  # type: ignore[attr-defined]


def _network(*activations: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for activation in activations:
        layers += [nn.Conv2d(1 if not layers else 8, 8, 3, padding=1), nn.Sequential(activation)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 10)).eval()


def test_only_the_copy_has_other_activations_and_the_weights_are_the_same() -> None:
    network = _network(Kwta("0.2"), Lwta("0.5"), StochasticLwta(2), nn.ReLU())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for kind, left in (("relu", 0), ("identity", 0), ("mean-field", 0), ("argmax", 2)):
        copied = swap_activations(network, kind)
        assert sum(isinstance(layer, Kwta | Lwta | StochasticLwta) for layer in copied.modules()) == (left and 3)
        assert not any(isinstance(layer, StochasticLwta) for layer in copied.modules())
        assert not copied.training
        assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    assert sum(isinstance(layer, Kwta | Lwta | StochasticLwta) for layer in network.modules()) == 3


def test_the_mean_field_of_stochastic_lwta_is_the_mean_of_its_draws() -> None:
    torch.manual_seed(0)
    layer, x = StochasticLwta(4).eval(), torch.randn(3, 8, 2)
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(dim=0)
    torch.testing.assert_close(swap_activations(layer, "mean-field")(x), mean, atol=0.1, rtol=0)


@pytest.mark.parametrize("layer", [Kwta("0.43"), Lwta("1/3")], ids=["kwta", "lwta"])
def test_mean_field_winners_pass_losers_do_not_and_gradients_reach_both(layer: nn.Module) -> None:
    # Values far apart, so that the winner of each group of three is clear; the last of seven channels is a group of its own.
    x = torch.tensor([[9.0, 0.0, -9.0, -9.0, 9.0, 0.0, 9.0]]).requires_grad_()
    soft = swap_activations(layer, "mean-field")(x)
    assert (soft - layer(x)).abs().max() < 1.5
    near = torch.linspace(1.0, 1.1, 12)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(swap_activations(layer, "mean-field")(near).sum(), near)
    assert bool((gradient != 0).all())
    # The selection is equally soft for values a thousand times as small.
    torch.testing.assert_close(swap_activations(layer, "mean-field")(x / 1000) * 1000, soft)


def test_the_mean_field_of_competing_channels_is_that_of_each_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    soft = swap_activations(Kwta("0.3", "channel"), "mean-field")(x)
    alone = swap_activations(Kwta("0.3"), "mean-field")
    for channel in range(3):
        torch.testing.assert_close(soft[:, channel], alone(x[:, channel]))


def test_argmax_is_lwta_for_stochastic_lwta() -> None:
    x = torch.randn(3, 8, 2)
    assert torch.equal(swap_activations(StochasticLwta(4), "argmax")(x), Lwta("0.25")(x))


def test_without_anything_to_replace_it_does_not_apply() -> None:
    for kind in KINDS:
        with pytest.raises(NotApplicable, match="has none"):
            swap_activations(_network(nn.ReLU()), kind)
    with pytest.raises(NotApplicable, match="stochastic LWTA"):
        swap_activations(_network(Kwta("0.2")), "argmax")
    with pytest.raises(UsageError, match="did you mean 'mean-field'"):
        swap_activations(_network(Kwta("0.2")), "meanfield")


def test_an_evaluation_transfers_from_the_models_own_weights() -> None:
    parameters = {"surrogate": "swap:mean-field", "search": "apgd", "steps": 20, "loss": "margin"}
    suite = override(suite_of(["transfer"]), [f"transfer.{key}={value}" for key, value in parameters.items()])
    evaluator = LocalEvaluator(Request("resnet18-lwta0.2", suite, registry=REGISTRY, n=32, threads=1))
    rows = range(32)
    outcomes = evaluator.judge("transfer", rows, evaluator.judge_clean(rows), None)
    assert sum(outcome.status == "broken" for outcome in outcomes) >= 24
    assert all(outcome.surrogate_prediction is not None for outcome in outcomes if outcome.status != "wrong")
