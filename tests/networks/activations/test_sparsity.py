"""The effective sparsity of each winner-take-all layer."""

from fractions import Fraction

import torch
from torch import nn

from kwbench.networks.activations import (
    Kwta,
    Lwta,
    StochasticLwta,
    effective_sparsity,
)


def test_effective_sparsity_is_the_share_that_survives_each_layer() -> None:
    network = nn.Sequential(Kwta("0.3"), Lwta("0.3"), nn.ReLU(), StochasticLwta(2), Kwta("0.3", "channel"))
    shares = effective_sparsity(network, torch.rand(2, 10, 2, 2))
    # 12 of 40 values; groups of three of ten channels leave a group of one, so four survive; one of two; one of four.
    assert shares == {"0": Fraction(12, 40), "1": Fraction(4, 10), "3": Fraction(1, 2), "4": Fraction(1, 4)}


def test_a_module_without_winner_take_all_layers_has_no_effective_sparsity() -> None:
    assert effective_sparsity(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.rand(2, 10, 2, 2)) == {}
