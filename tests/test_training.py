"""Training by recipe: reproducible, within the ball, and refusing what cannot work."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kwbench.activations import Kwta
from kwbench.data import DataSet, Split, load_dataset
from kwbench.errors import CannotEvaluate, UsageError
from kwbench.loading import build_module, load_weights
from kwbench.registry import ModelEntry, TrainingAttack
from kwbench.strict_yaml import validate
from kwbench.training import Epoch, _adversarial, _phases, accuracy, save_checkpoint, train

CNN = {"name": "cnn3", "width": 4, "hidden": 16}
RECIPE: dict[str, Any] = {"epochs": 2, "learning_rate": 0.05, "seed": 7, "batch_size": 32, "shift": 1}


@pytest.fixture(scope="module")
def few() -> DataSet:
    """The digits with only 200 training images."""
    whole = load_dataset("digits")
    train_split = Split(whole.train.images[:200], whole.train.labels[:200])
    return DataSet("digits", 10, whole.test, train_split, whole.validation, whole.threat)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def entry(activation: dict[str, Any] | None = None, **recipe: Any) -> ModelEntry:
    return validate(
        ModelEntry,
        {"architecture": CNN, "activation": activation or {"name": "relu"}, "recipe": RECIPE | recipe},
        "registry.yaml",
    )


def quiet(_: Epoch) -> None:
    pass


def bits(module: nn.Module) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in module.state_dict().items()}


LOWERING = {"start": 0.5, "step": 0.2, "epochs": 1, "learning_rate": 0.02, "final_epochs": 1}
ADVERSARY = {"eps": 0.2, "steps": 2, "step_size": 0.1, "warmup_epochs": 1}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "natural": ({"name": "relu"}, {}),
    "adversarial": ({"name": "lwta", "gamma": 0.5}, {"adversarial": ADVERSARY, "clip_norm": 1.0}),
    "incremental": ({"name": "kwta", "gamma": 0.2}, {"incremental": LOWERING}),
    "stochastic": ({"name": "stochastic_lwta"}, {"adversarial": ADVERSARY}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights_to_the_last_bit(kind: str, few: DataSet) -> None:
    activation, recipe = KINDS[kind]
    first = train(entry(activation, **recipe), few, quiet)
    torch.rand(5)  # what was drawn before does not matter
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


def test_accuracy_is_the_share_that_is_right() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(3)[torch.zeros(len(x), dtype=torch.long)]

    split = Split(np.zeros((600, 1, 2, 2), dtype=np.float32), np.array([0, 1, 2] * 200))
    assert accuracy(First(), split) == pytest.approx(1 / 3)


def test_incremental_training_lowers_gamma_step_by_step_to_exactly_the_target(few: DataSet) -> None:
    made = entry({"name": "kwta", "gamma": 0.2}, incremental=LOWERING | {"step": 0.2, "epochs": 2})
    module = build_module(made, (1, 8, 8), 10)
    assert made.recipe is not None
    gammas = [str(phase.gamma) for phase in _phases(made.recipe, [each for each in module.modules() if isinstance(each, Kwta)])]
    assert gammas == ["1/2", "1/2", "3/10", "3/10", "1/5", "1/5", "1/5"]
    trained = train(made, few, quiet)
    assert {str(layer.gamma) for layer in trained.modules() if isinstance(layer, Kwta)} == {"1/5"}


def test_recipes_that_do_not_suit_the_network_are_refused(few: DataSet) -> None:
    with pytest.raises(UsageError, match="lowers the gamma of k-WTA layers, and the network has none"):
        train(entry(incremental=LOWERING), few, quiet)
    for gamma in (0.5, 0.6):
        with pytest.raises(UsageError, match=r"incremental\.start: 1/2 is not above the network's gamma"):
            train(entry({"name": "kwta", "gamma": gamma}, incremental=LOWERING), few, quiet)
    bare = validate(ModelEntry, {"architecture": CNN, "activation": {"name": "relu"}}, "registry.yaml")
    with pytest.raises(UsageError, match="no recipe"):
        train(bare, few, quiet)
    for n in (0, 1):
        little = DataSet("own", 10, few.test, Split(few.train.images[:n], few.train.labels[:n]), few.validation, few.threat)
        with pytest.raises(UsageError, match=f"'own' has {n} training images; batch norm needs at least 2"):
            train(entry(), little, quiet)


def test_a_loss_that_is_not_finite_ends_the_training(few: DataSet) -> None:
    with pytest.raises(CannotEvaluate, match="the loss is not finite in epoch 1; lower learning_rate"):
        train(entry(learning_rate=1e30), few, quiet)


def test_a_winner_take_all_network_that_diverges_ends_the_training_in_words(few: DataSet) -> None:
    with pytest.raises(CannotEvaluate, match="NaN, which has no rank; lower learning_rate"):
        train(entry({"name": "kwta", "gamma": 0.5}, learning_rate=1e30), few, quiet)


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_training_images_stay_in_the_ball_and_among_the_pixels(few: DataSet, epoch: int) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 5, "step_size": "0.15", "warmup_epochs": 3})
    module = build_module(entry(), (1, 8, 8), 10)
    batch = few.train.batch(range(64))
    torch.manual_seed(0)
    z = _adversarial(module, batch.x, batch.y, attack, epoch)
    radius = 0.2 * min(1, (epoch + 1) / 4)
    distances = (z.double() - batch.x.double()).flatten(1).abs().amax(dim=1)
    assert distances.max() <= radius + 1e-6
    assert distances.max() >= 0.9 * radius
    assert z.min() >= 0
    assert z.max() <= 1
    assert not z.requires_grad
    loss = nn.functional.cross_entropy
    assert loss(module(z), batch.y) > loss(module(batch.x), batch.y)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_steps_of_the_adversary_warm_up_with_its_radius(few: DataSet) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 1, "step_size": "0.02", "warmup_epochs": 3})
    batch = few.train.batch(range(64))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.manual_seed(0)
    start = (batch.x + torch.empty_like(batch.x).uniform_(-0.05, 0.05)).clamp(0, 1)
    torch.manual_seed(0)
    z = _adversarial(linear, batch.x, batch.y, attack, 0)
    assert (z - start).abs().max().item() == pytest.approx(0.005, abs=1e-6)


def test_adversarial_training_makes_the_network_more_robust(few: DataSet) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 10, "step_size": "0.05"})
    batch = few.validation.batch(range(len(few.validation)))
    left = []
    for recipe in ({}, {"adversarial": ADVERSARY}):
        module = train(entry(epochs=15, **recipe), few, quiet)
        torch.manual_seed(0)
        z = _adversarial(module, batch.x, batch.y, attack, 0)
        left.append((module(z).argmax(dim=1) == batch.y).float().mean().item())
    assert left[1] > left[0] + 0.1


def test_the_weight_of_the_divergence_changes_what_is_learned(few: DataSet) -> None:
    kind = {"name": "stochastic_lwta"}
    default, none, one_in_n = (
        bits(train(entry(kind, epochs=1, **options), few, quiet)) for options in ({}, {"kl_weight": 0}, {"kl_weight": 1 / 200})
    )
    assert default == one_in_n != none


def test_a_saved_checkpoint_holds_the_same_weights_under_its_hash(tmp_path: Path, few: DataSet) -> None:
    module = train(entry(epochs=1), few, quiet)
    path = tmp_path / "new" / "net.safetensors"
    assert save_checkpoint(module, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    other = build_module(entry(), (1, 8, 8), 10)
    load_weights(other, path.read_bytes(), "net")
    assert bits(other) == bits(module)
    assert [each.name for each in path.parent.iterdir()] == ["net.safetensors"]
    assert save_checkpoint(module, path) == save_checkpoint(other, tmp_path / "again")
