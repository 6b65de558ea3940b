"""The shipped models meet the promises of the README."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conftest import shared
from kwbench.config.prediction import PredictionRule
from kwbench.config.registry import Registry, read_registry
from kwbench.config.suite import override, suite_of
from kwbench.data import DataSet, Split, load_dataset
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.networks.activations import Kwta, effective_sparsity
from kwbench.networks.entries import load_entry
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.training import accuracy, read_curve, recipe_hash

REGISTRY = Path(__file__).resolve().parents[2] / "registry.yaml"
TRAININGS = [
    f"resnet18-{activation}{at}" for activation in ("relu", "kwta0.1", "kwta0.2", "lwta0.2", "slwta2") for at in ("", "-at")
]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return read_registry(REGISTRY)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_dataset("digits")


def test_the_zoo_contains_every_activation_with_both_trainings_a_surrogate_and_a_wide_resnet(registry: Registry) -> None:
    assert {*TRAININGS, "vgg11", "wrn16-2-relu"} <= set(registry.entries)


def shipped(registry: Registry) -> list[str]:
    """The models that come with their weights: those that others published are fetched, and some are yet to be trained."""
    return [
        name for name, entry in registry.entries.items() if entry.checkpoint is not None and entry.checkpoint.source is None
    ]


def test_every_shipped_model_has_a_recipe_and_a_checkpoint_that_hashes_to_what_is_pinned(registry: Registry) -> None:
    for name in shipped(registry):
        entry = registry.entries[name]
        assert entry.recipe is not None, name
        assert entry.checkpoint is not None, name
        content = registry.checkpoint_path(name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry.checkpoint.sha256, name


@pytest.mark.parametrize("folder", ["mnist", "cifar10"])
def test_a_checkpoint_trained_on_real_images_holds_the_hash_of_its_recipe_and_has_a_curve(
    registry: Registry, folder: str
) -> None:
    for name in shipped(registry):
        if name.startswith(f"{folder}/"):
            path, recipe = registry.checkpoint_path(name), registry.entries[name].recipe
            assert recipe is not None
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            assert metadata == {"recipe": recipe_hash(registry.entries[name])}, name
            curve = read_curve(path)
            assert len(curve) >= recipe.epochs, name
            assert curve[-1]["loss"] < curve[0]["loss"], name


# Correct predictions of deterministic networks on 512 original test images of CIFAR-10 and on the first 1,000 of MNIST.
READ = {
    "cifar10/lenet": 322,
    "cifar10/resnet18-w16-relu": 440,
    "cifar10/resnet18-w16-relu-fast": 321,
    "cifar10/resnet18-w16-kwta0.1": 383,
    "cifar10/resnet18-w16-kwta0.1-fast": 238,
    "cifar10/resnet18-w16-kwta0.2": 409,
    "cifar10/resnet18-w16-kwta0.2-fast": 286,
    "cifar10/resnet18-w16-lwta0.1": 329,
    "cifar10/resnet18-w16-lwta0.1-fast": 216,
    "cifar10/resnet18-w16-lwta0.2": 404,
    "cifar10/resnet18-w16-lwta0.2-fast": 223,
    "mnist/cnn3-relu": 992,
    "mnist/cnn3-relu-at": 987,
    "mnist/cnn3-relu-trades": 980,
    "mnist/cnn3-relu-free": 988,
    "mnist/cnn3-kwta0.1": 989,
    "mnist/cnn3-kwta0.1-channel": 978,
    "mnist/cnn3-kwta0.1-free": 987,
    "mnist/cnn3-kwta0.1-at": 987,
    "mnist/cnn3-kwta0.1-trades": 977,
}


@pytest.mark.parametrize("name", READ)
def test_a_network_trained_on_real_images_has_the_accuracy_of_the_claims_page(registry: Registry, name: str) -> None:
    if name.startswith("mnist/"):
        images = load_dataset("mnist", data_dir=shared("data/MNIST").parent)
    else:
        images = load_dataset("cifar10", data=shared("data/cifar10-exact-subset.npz"))
    first = Split(images.test.images[:1000], images.test.labels[:1000])
    right = accuracy(load_entry(registry, name, registry.entries[name], images).module, first) * len(first)
    assert right == pytest.approx(READ[name], abs=2), "another machine may round otherwise"


def test_checkpoints_stay_within_3_mb_each_and_80_mb_together(registry: Registry) -> None:
    sizes = [registry.checkpoint_path(name).stat().st_size for name in shipped(registry)]
    assert max(sizes) <= 3_000_000
    assert sum(sizes) <= 80_000_000


@pytest.mark.parametrize(
    ("name", "least"), [(name, 0.98 if name == "resnet18-relu" else 0.96) for name in TRAININGS if not name.endswith("-at")]
)
def test_a_naturally_trained_model_classifies_the_test_digits(
    registry: Registry, digits: DataSet, name: str, least: float
) -> None:
    module = load_entry(registry, name, registry.entries[name], digits).module
    torch.manual_seed(0)  # a stochastic LWTA network predicts by one draw
    assert accuracy(module, digits.test) >= least


def test_incremental_training_ended_at_the_gamma_of_the_entry(registry: Registry, digits: DataSet) -> None:
    name = "resnet18-kwta0.1"
    module = load_entry(registry, name, registry.entries[name], digits).module
    shares = effective_sparsity(module, digits.test.batch([0]).x)
    assert len(shares) == sum(isinstance(layer, Kwta) for layer in module.modules()) == 17
    assert all(0.09 < share <= 0.1 for share in shares.values())


def test_pgd_mim_and_autoattack_each_leave_natural_relu_below_5_percent(tmp_path: Path) -> None:
    attacks = ["pgd", "mim", "transfer", "autoattack"]
    store = Store.open(str(tmp_path / "results.db"), create=True)
    request = Request("resnet18-relu", suite_of(attacks), registry=REGISTRY, n=128, threads=1)
    (summary,) = summaries(store, [evaluate(request, store)])
    accuracy = {attack.name: attack.accuracy.value for attack in summary.attacks if attack.accuracy is not None}
    assert summary.complete
    assert set(accuracy) == set(attacks)
    assert max(accuracy[name] for name in ("pgd", "mim", "autoattack")) < 0.05
    assert summary.a_rob is not None
    assert summary.a_rob.value <= min(accuracy.values())
    (transfer,) = (attack for attack in summary.attacks if attack.name == "transfer")
    assert transfer.surrogate == "vgg11"
    assert transfer.surrogate_accuracy is not None
    assert transfer.surrogate_accuracy.value < 0.05


@pytest.mark.heavy
def test_frozen_randomness_is_no_more_robust_than_a_draw_and_a_draw_no_more_than_no_attack(tmp_path: Path) -> None:
    """Otherwise the attack on the random model would be faulty: it knows less than an attack on a fixed draw."""
    store = Store.open(str(tmp_path / "results.db"), create=True)
    suite = override(suite_of(["pgd"]), ["pgd.steps=10", "pgd.relative_step_size=0.25"])
    rules = [PredictionRule(), *(PredictionRule(kind="frozen", seed=seed) for seed in range(5))]
    requests = [
        Request("resnet18-slwta2", suite, registry=REGISTRY, n=32, eps="0.1", threads=1, prediction=rule) for rule in rules
    ]
    drawn, *frozen = summaries(store, [evaluate(request, store) for request in requests])
    assert drawn.stochastic
    assert not any(summary.stochastic for summary in frozen)
    assert len({summary.evaluation.spec.identity for summary in frozen}) == 5
    robust = [summary.a_rob.value for summary in frozen if summary.a_rob is not None]
    assert len(robust) == 5
    assert drawn.a_rob is not None
    assert drawn.a_std is not None
    assert sum(robust) / 5 <= drawn.a_rob.value
    assert drawn.a_rob.value < drawn.a_std.value
