"""Training by recipe: reproducible, within the ball, and refusing what cannot work."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from torch import Tensor, nn

from kwbench.config.recipe import Fast, Mixture, Recipe, Trades, TrainingAttack
from kwbench.config.registry import ModelEntry, Normalise, read_registry
from kwbench.config.strict_yaml import validate
from kwbench.data import DataSet, Split, load_dataset
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.networks.activations import Kwta, activation_factory
from kwbench.networks.entries import build_module
from kwbench.networks.weights import load_weights
from kwbench.training import Epoch, accuracy, read_curve, recipe_hash, save_checkpoint, train
from kwbench.training.adversaries import kl_divergence, mixture_examples, pgd_examples, trades_examples
from kwbench.training.augmentation import augment
from kwbench.training.bfloat16_activations import bfloat16_activations
from kwbench.training.progress import write_progress
from kwbench.training.schedule import phases

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


def entry(activation: dict[str, Any] | None = None, network: dict[str, Any] = CNN, **recipe: Any) -> ModelEntry:
    return validate(
        ModelEntry,
        {"architecture": network, "activation": activation or {"name": "relu"}, "recipe": RECIPE | recipe},
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
    "bfloat16": ({"name": "kwta", "gamma": 0.2}, {"incremental": LOWERING, "precision": "bfloat16"}),
    "trades": ({"name": "relu"}, {"trades": ADVERSARY, "flip": True}),
    "free": ({"name": "kwta", "gamma": 0.3}, {"free": {"eps": 0.2, "replays": 3}}),
    "fast": ({"name": "relu"}, {"fast": {"eps": 0.2}, "precision": "bfloat16", "storage": "float16"}),
    "mixture": ({"name": "relu"}, {"mixture": ADVERSARY | {"attacks": ["noise", "fgsm", "pgd", "cw"]}, "noise": 0.1}),
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
    winners = [each for each in module.modules() if isinstance(each, Kwta)]
    gammas = [str(phase.gamma) for phase in phases(made.recipe, winners)]
    assert gammas == ["1/2", "1/2", "3/10", "3/10", "1/5", "1/5", "1/5"]
    trained = train(made, few, quiet)
    assert {str(layer.gamma) for layer in trained.modules() if isinstance(layer, Kwta)} == {"1/5"}


def test_recipes_that_do_not_suit_the_network_are_refused(few: DataSet) -> None:
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
    z = pgd_examples(module, batch.x, batch.y, attack, epoch)
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
    z = pgd_examples(linear, batch.x, batch.y, attack, 0)
    assert (z - start).abs().max().item() == pytest.approx(0.005, abs=1e-6)


def test_adversarial_training_makes_the_network_more_robust(few: DataSet) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 10, "step_size": "0.05"})
    batch = few.validation.batch(range(len(few.validation)))
    left = []
    for recipe in ({}, {"adversarial": ADVERSARY}):
        module = train(entry(epochs=15, **recipe), few, quiet)
        torch.manual_seed(0)
        z = pgd_examples(module, batch.x, batch.y, attack, 0)
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


# What is made of a batch


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize("number", range(8))
def test_each_number_of_the_mixture_does_what_the_paper_says_and_none_leaves_the_pixels(few: DataSet, number: int) -> None:
    every = ["noise", "fgsm", "pgd", "cw"]
    mixture = Mixture.model_validate({"eps": "0.3", "steps": 3, "step_size": "0.01", "attacks": every})
    batch = few.train.batch(range(64))
    module = linear()
    z = mixture_examples(module, batch.x, batch.y, mixture, number, 0)
    moved = (z - batch.x).abs().flatten(1).amax(dim=1)
    assert z.min() >= 0
    assert z.max() <= 1
    assert not z.requires_grad
    if number > 3:
        assert torch.equal(z, batch.x)
    else:
        assert bool((moved > 0).all())
    if number == 1:
        assert moved.min().item() == pytest.approx(0.3)
    if number == 2:  # three steps of 0.01 from a random start
        assert moved.max() <= 0.3 + 1e-6
    if number == 3:  # three steps of Adam at a tiny constant hardly move
        assert moved.max() < 0.05
    without = Mixture.model_validate(
        {"eps": "0.3", "steps": 3, "step_size": "0.01", "attacks": [each for each in every if each != every[number % 4]]}
    )
    if number < 4:
        assert torch.equal(mixture_examples(module, batch.x, batch.y, without, number, 0), batch.x)


def test_trades_looks_for_where_the_answers_diverge_within_the_ball(few: DataSet) -> None:
    trades = Trades.model_validate({"eps": "0.2", "steps": 5, "step_size": "0.1"})
    assert trades.beta == 6
    batch, module = few.train.batch(range(64)), linear()
    with torch.no_grad():
        natural = module(batch.x).log_softmax(dim=1)
    z = trades_examples(module, batch.x, natural, trades, 0)
    assert (z - batch.x).abs().max() <= 0.2 + 1e-6
    with torch.no_grad():
        found, none = kl_divergence(module(z), natural), kl_divergence(module(batch.x), natural)
    assert none.item() == pytest.approx(0, abs=1e-6)
    assert found > 0.01


def test_fast_training_takes_one_step_of_a_quarter_more_than_eps_and_is_cut_to_the_ball(few: DataSet) -> None:
    batch, module = few.train.batch(range(64)), linear()
    calls: list[int] = []

    def answer(x: Tensor) -> Tensor:
        calls.append(len(x))
        logits: Tensor = module(x)
        return logits

    z = pgd_examples(answer, batch.x, batch.y, Fast.model_validate({"eps": "0.2"}), 0)
    assert len(calls) == 1
    assert (z - batch.x).abs().max().item() == pytest.approx(0.2, abs=1e-6)


def test_free_training_replays_each_batch_and_counts_every_replay(few: DataSet) -> None:
    epochs: list[Epoch] = []
    steps: list[float] = []
    plain = torch.optim.SGD.step

    def counted(self: torch.optim.SGD) -> None:
        steps.append(self.param_groups[0]["lr"])
        plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", counted)
        train(entry(free={"eps": 0.1, "replays": 3}, epochs=1), few, epochs.append)
    assert len(steps) == 3 * 7  # 200 images in batches of 32
    assert epochs[-1].done == 1


@pytest.mark.parametrize(("said", "expected"), [({}, 0.1), ({"step_size": "0.02"}, 0.02)])
def test_a_step_of_free_training_is_eps_unless_the_recipe_says_otherwise(
    said: dict[str, str], expected: float, few: DataSet
) -> None:
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 1 and len(inputs[0]) > 1:
            seen.append(inputs[0].detach().clone())

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        train(entry(free={"eps": 0.1, "replays": 2, **said}, epochs=1, shift=0), few, quiet)
    finally:
        handle.remove()
    assert (seen[1] - seen[0]).abs().max().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["trades", "free", "fast"])
def test_each_adversarial_training_makes_the_network_more_robust(kind: str, few: DataSet) -> None:
    attack = TrainingAttack.model_validate({"eps": "0.2", "steps": 10, "step_size": "0.05"})
    batch = few.validation.batch(range(len(few.validation)))
    recipe: dict[str, Any] = {"trades": ADVERSARY, "free": {"eps": 0.2, "replays": 4}, "fast": {"eps": 0.2}}[kind]
    left = []
    for training in ({}, {kind: recipe}):
        module = train(entry(epochs=15, **training), few, quiet)
        torch.manual_seed(0)
        z = pgd_examples(module, batch.x, batch.y, attack, 0)
        left.append((module(z).argmax(dim=1) == batch.y).float().mean().item())
    assert left[1] > left[0] + 0.05


def test_images_are_mirrored_every_other_time(few: DataSet) -> None:
    recipe = validate(Recipe, RECIPE | {"shift": 0, "flip": True}, "recipe")
    x = few.train.batch(range(200)).x
    z = augment(x, recipe, torch.Generator().manual_seed(0))
    same = (z == x).flatten(1).all(dim=1)
    assert bool((same | (z == x.flip(3)).flatten(1).all(dim=1)).all())
    assert 70 < int(same.sum()) < 130


SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": ({"kind": "constant"}, [1, 1, 1, 1, 1, 1]),
    "once": ({"kind": "drop", "after": 3}, [1, 1, 1, 0.1, 0.1, 0.1]),
    "halved at every epoch after": ({"kind": "drop", "after": 3, "factor": 0.5, "repeat": True}, [1, 1, 1, 0.5, 0.25, 0.125]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_run_as_the_papers_say(name: str) -> None:
    schedule, expected = SCHEDULES[name]
    recipe = validate(Recipe, {"epochs": 6, "learning_rate": 1, "seed": 0, "schedule": schedule}, "recipe")
    assert [phase.learning_rate(0.5) for phase in phases(recipe, [])] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("activation", "precision", "last"),
    [
        ({"name": "relu"}, "float32", True),
        ({"name": "relu"}, "bfloat16", True),
        ({"name": "kwta", "gamma": 0.2}, "float32", True),
        ({"name": "kwta", "gamma": 0.2}, "bfloat16", False),
        ({"name": "stochastic_lwta"}, "float32", False),
    ],
)
def test_channels_are_laid_out_last_but_where_a_layer_would_copy_them(
    few: DataSet, activation: dict[str, Any], precision: str, last: bool
) -> None:
    assert laid_out_last(entry(activation, epochs=1, precision=precision), few) == last


@pytest.mark.parametrize(("width", "last"), [(8, False), (15, False), (16, True)])
def test_channels_are_not_laid_out_last_where_onednn_would_write_beyond_its_memory(
    few: DataSet, width: int, last: bool
) -> None:
    assert laid_out_last(entry(network={"name": "resnet18", "width": width}, epochs=1), few) == last


def test_images_that_come_with_channels_last_are_laid_out_as_the_network_is(few: DataSet) -> None:
    # As the files of torchvision have them.
    stored = np.random.default_rng(0).random((200, 8, 8, 3), dtype=np.float32)
    images = Split(stored.transpose(0, 3, 1, 2), few.train.labels)
    coloured = DataSet("coloured", 10, images, images, images, few.threat)
    narrow = entry(network={"name": "resnet18", "width": 8}, epochs=1, shift=0)
    assert not laid_out_last(narrow, coloured)
    assert laid_out_last(entry(network={"name": "resnet18", "width": 16}, epochs=1, shift=0), coloured)


def laid_out_last(model: ModelEntry, dataset: DataSet) -> bool:
    """Whether weights and images, in the last batch, have channels last; all or none."""
    seen: list[bool] = []

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1 and layer.kernel_size != (1, 1):
            seen.append(layer.weight.is_contiguous(memory_format=torch.channels_last))
            if given[0].shape[2] > 1:
                seen.append(given[0].is_contiguous(memory_format=torch.channels_last))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        train(model, dataset, quiet)
    finally:
        hook.remove()
    # The first pass of all only sees whether the network suits the images.
    assert len(set(seen[len(seen) // 2 :])) == 1
    return seen[-1]


@pytest.mark.parametrize(("name", "options"), [("kwta", {}), ("kwta", {"within": "channel"}), ("lwta", {})])
def test_swift_competition_has_the_same_winners_and_gradients_and_is_gone_afterwards(
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


# What training leaves behind


def test_half_precision_weights_are_those_that_were_returned(few: DataSet, tmp_path: Path) -> None:
    module = train(entry(epochs=1, storage="float16"), few, quiet)
    save_checkpoint(module, tmp_path / "half", "float16")
    save_checkpoint(module, tmp_path / "whole")
    other = build_module(entry(), (1, 8, 8), 10)
    load_weights(other, (tmp_path / "half").read_bytes(), "half")
    assert bits(other) == bits(module)
    assert (tmp_path / "half").stat().st_size < 0.65 * (tmp_path / "whole").stat().st_size


def test_the_hash_of_a_recipe_knows_everything_that_makes_the_weights_and_nothing_else() -> None:
    made = recipe_hash(entry())
    assert made == recipe_hash(entry(momentum=0.9)), "what is said, and is the default"
    changed = [entry(seed=8), entry(noise=0.1), entry({"name": "softplus"}), entry(fast={"eps": 0.1})]
    assert len({made, *map(recipe_hash, changed)}) == 5
    described = entry().model_copy(update={"description": "another"})
    assert recipe_hash(described) == made


@pytest.mark.parametrize(("initial", "variance"), [("kaiming_normal", 2), ("pytorch", 1 / 3)])
def test_weights_are_first_drawn_as_the_recipe_says(few: DataSet, initial: str, variance: float) -> None:
    module = train(entry(epochs=1, learning_rate=1e-9, initial=initial), few, quiet)
    wide = max((layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)), key=Tensor.numel)
    assert wide.var().item() * wide[0].numel() == pytest.approx(variance, rel=0.1)


def test_training_starts_from_given_weights_but_for_a_last_layer_of_other_classes(few: DataSet, tmp_path: Path) -> None:
    made = entry(epochs=1, learning_rate=1e-9, pretrained="https://example.org/cnn-01234567.pth")
    with pytest.raises(UsageError, match="--weights takes a copy of it, --download fetches it"):
        train(made, few, quiet)
    given = build_module(entry(), (1, 8, 8), 7)
    save_checkpoint(given, tmp_path / "given")
    module = train(made, few, quiet, pretrained=(tmp_path / "given").read_bytes())
    assert torch.allclose(module.get_parameter("conv1.weight"), given.get_parameter("conv1.weight"), atol=1e-6)
    assert module.get_parameter("fc2.weight").shape == (10, 16)
    shifted = made.model_copy(update={"normalise": Normalise(mean=[0.5], std=[0.5])})
    behind = train(shifted, few, quiet, pretrained=(tmp_path / "given").read_bytes())
    assert torch.allclose(behind.get_parameter("network.conv1.weight"), given.get_parameter("conv1.weight"), atol=1e-6)
    save_checkpoint(nn.Linear(2, 2), tmp_path / "other")
    with pytest.raises(DamagedData, match=r"cnn-01234567\.pth: weights do not fit the network; missing: conv1\.weight"):
        train(made, few, quiet, pretrained=(tmp_path / "other").read_bytes())
    with pytest.raises(DamagedData, match="not a safetensors file"):
        train(made, few, quiet, pretrained=b"nothing")


# Stopped and gone on


class Stopped(Exception):
    """Raised in the middle of a training."""


@pytest.mark.parametrize("kind", ["bfloat16", "stochastic", "free", "mixture"])
def test_a_training_stopped_within_an_epoch_ends_at_the_same_weights(
    kind: str, few: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kwbench.training.loop._SAVE_EVERY", 0)
    activation, recipe = KINDS[kind]
    made = entry(activation, **recipe)
    epochs: list[Epoch] = []
    whole = train(made, few, epochs.append)
    saved: list[int] = []

    def stop(path: Path, identity: dict[str, str], state: dict[str, Any]) -> None:
        write_progress(path, identity, state)
        saved.append(len(saved))
        if len(saved) == 10:  # in the second epoch of seven batches
            raise Stopped

    path = tmp_path / "net.progress"
    monkeypatch.setattr("kwbench.training.loop.write_progress", stop)
    with pytest.raises(Stopped):
        train(made, few, quiet, progress=path)
    monkeypatch.setattr("kwbench.training.loop.write_progress", write_progress)
    torch.rand(3)
    rest: list[Epoch] = []
    assert bits(train(made, few, rest.append, progress=path)) == bits(whole)
    assert [(each.number, each.loss, each.accuracy) for each in rest] == [
        (each.number, each.loss, each.accuracy) for each in epochs[1:]
    ]


def test_progress_of_something_else_is_refused_and_damaged_progress_named(few: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "net.progress"
    train(entry(epochs=1), few, quiet, progress=path)
    with pytest.raises(UsageError, match=r"net\.progress: the progress of a training with other recipe; remove it"):
        train(entry(epochs=2), few, quiet, progress=path)
    with pytest.raises(UsageError, match="with other images"):
        train(entry(epochs=1), load_dataset("digits"), quiet, progress=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedData, match=r"net\.progress: .*damaged.*remove it"):
        train(entry(epochs=1), few, quiet, progress=path)


def test_a_training_killed_with_kill_9_continues_to_the_same_weights(tmp_path: Path) -> None:
    """The real command, killed without warning between two epochs or within one, twice."""
    (tmp_path / "registry.yaml").write_text(
        "models:\n  net:\n    architecture: {name: cnn3, width: 8, hidden: 32}\n    activation: {name: kwta, gamma: 0.2}\n"
        "    recipe: {epochs: 8, learning_rate: 0.05, seed: 0, threads: 1, shift: 1, free: {eps: 0.1, replays: 2}}\n"
    )
    start = "from kwbench.cli.main import main; import kwbench.training.loop as loop; loop._SAVE_EVERY = 0.05; main()"
    root = Path(__file__).resolve().parents[2] / "bench"

    def begin(output: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", start, "train", "net", "--output", output, "--json"]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, **pipes)

    with begin("whole.safetensors") as whole:
        out, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    progress = tmp_path / "killed.progress"
    for epochs in (2, 5):
        with begin("killed.safetensors") as victim:
            assert victim.stderr is not None
            for line in victim.stderr:
                if f"epoch {epochs}/8" in line:
                    break
            victim.send_signal(signal.SIGKILL)
        assert victim.returncode == -signal.SIGKILL
        assert progress.exists()
        assert not (tmp_path / "killed.safetensors").exists()
    with begin("killed.safetensors") as last:
        again, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert "epoch 1/8" not in err, "it began anew"
    assert json.loads(again)["sha256"] == json.loads(out)["sha256"]
    assert read_curve(tmp_path / "killed.safetensors") == read_curve(tmp_path / "whole.safetensors")
    assert [epoch["epoch"] for epoch in read_curve(tmp_path / "killed.safetensors")] == list(range(1, 9))
    assert not progress.exists()
    with safetensors.safe_open(tmp_path / "killed.safetensors", "pt") as file:
        found = file.metadata()
    assert found == {"recipe": recipe_hash(read_registry(tmp_path / "registry.yaml").entries["net"])}


def test_a_curve_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotEvaluate, match=r"net\.curve\.json: cannot be read"):
        read_curve(tmp_path / "net.safetensors")
    (tmp_path / "net.curve.json").write_text("[]")
    with pytest.raises(DamagedData, match=r"net\.curve\.json: not a learning curve"):
        read_curve(tmp_path / "net.safetensors")
