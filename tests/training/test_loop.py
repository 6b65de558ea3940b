"""The training loop: reproducible weights, reports of epochs, and the refusal of unsuitable recipes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kwbench.config.registry import ModelEntry
from kwbench.config.strict_yaml import validate
from kwbench.data import DataSet, Split, load_dataset
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.training import Epoch, accuracy, train
from support.training import CNN, KINDS, LOWERING, bits, entry, quiet


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights_to_the_last_bit(kind: str, few: DataSet) -> None:
    activation, recipe = KINDS[kind]
    first = train(entry(activation, **recipe), few, quiet)
    torch.rand(5)  # earlier draws must not matter
    second = train(entry(activation, **recipe), few, quiet)
    assert bits(first) == bits(second)
    assert bits(first) != bits(train(entry(activation, **recipe, seed=8), few, quiet))
    assert not first.training


def test_training_learns_and_reports_every_epoch(few: DataSet) -> None:
    epochs: list[Epoch] = []
    module = train(entry(epochs=5), load_dataset("digits"), epochs.append)
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4, 5]
    assert {epoch.total for epoch in epochs} == {5}
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].accuracy > 0.7
    assert accuracy(module, few.validation) > 0.7


def test_accuracy_is_the_share_of_correct_predictions() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(3)[torch.zeros(len(x), dtype=torch.long)]

    split = Split(np.zeros((600, 1, 2, 2), dtype=np.float32), np.array([0, 1, 2] * 200))
    assert accuracy(First(), split) == pytest.approx(1 / 3)


def test_recipes_that_do_not_fit_the_network_or_data_are_refused(few: DataSet) -> None:
    with pytest.raises(UsageError, match="lowers the gamma of k-WTA layers, and the network has none"):
        train(entry(incremental=LOWERING), few, quiet)
    for gamma in (0.5, 0.6):
        with pytest.raises(UsageError, match=r"incremental\.start: 1/2 is not above the network's gamma"):
            train(entry({"name": "kwta", "gamma": gamma}, incremental=LOWERING), few, quiet)
    with pytest.raises(UsageError, match="shift: 8 moves images of 8x8 out of sight"):
        train(entry(shift=8), few, quiet)
    bare = validate(ModelEntry, {"architecture": CNN, "activation": {"name": "relu"}}, "registry.yaml")
    with pytest.raises(UsageError, match="no recipe"):
        train(bare, few, quiet)
    for n in (0, 1):
        dataset = DataSet("own", 10, few.test, Split(few.train.images[:n], few.train.labels[:n]), few.validation, few.threat)
        with pytest.raises(UsageError, match=f"'own' has {n} training images; batch norm needs at least 2"):
            train(entry(), dataset, quiet)


def test_a_loss_that_is_not_finite_ends_the_training(few: DataSet) -> None:
    with pytest.raises(CannotEvaluate, match="the loss is not finite in epoch 1; lower learning_rate"):
        train(entry(learning_rate=1e30), few, quiet)


def test_a_diverging_winner_take_all_network_ends_the_training_with_a_clear_error(few: DataSet) -> None:
    with pytest.raises(CannotEvaluate, match="NaN, which has no rank; lower learning_rate"):
        train(entry({"name": "kwta", "gamma": 0.5}, learning_rate=1e30), few, quiet)


def test_the_weight_of_the_divergence_changes_the_trained_weights(few: DataSet) -> None:
    kind = {"name": "stochastic_lwta"}
    default, none, one_in_n = (
        bits(train(entry(kind, epochs=1, **options), few, quiet)) for options in ({}, {"kl_weight": 0}, {"kl_weight": 1 / 200})
    )
    assert default == one_in_n != none
