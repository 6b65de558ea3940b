"""Winner-take-all activations for training in bfloat16."""

import pytest
import torch
from torch import Tensor, nn

from kwbench.networks.activations import activation_factory
from kwbench.training.bfloat16_activations import bfloat16_activations


@pytest.mark.parametrize(("name", "options"), [("kwta", {}), ("kwta", {"within": "channel"}), ("lwta", {})])
def test_bfloat16_activations_have_the_same_winners_and_gradients_and_are_removed_afterwards(
    name: str, options: dict[str, str]
) -> None:
    factory = activation_factory(name, {"gamma": "0.3", **options})
    network = nn.Sequential(nn.Conv2d(1, 8, 3), factory(), nn.Sequential(factory()))
    x = torch.randn(5, 1, 9, 9)
    keys, layers = list(network.state_dict()), list(network.modules())

    def run() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        out = network(leaf)
        (gradient,) = torch.autograd.grad(out.square().sum(), leaf)
        return out, gradient

    out, gradient = run()
    with bfloat16_activations(network):
        assert list(network.state_dict()) == keys
        swiftly, its_gradient = run()
        assert type(network[1]) is not type(layers[2])
        with pytest.raises(ValueError, match="NaN"):
            network(torch.full((2, 1, 9, 9), torch.nan))
    assert torch.equal(swiftly, out)
    assert torch.allclose(its_gradient, gradient, atol=1e-6)
    assert list(network.modules()) == layers
