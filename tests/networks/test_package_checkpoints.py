"""The ResNet-18 of AutoAttack's examples, whose checkpoint lies in an installed package."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import SHARED
from kwbench.config.registry import ModelEntry, Registry, Source, read_registry
from kwbench.config.strict_yaml import validate
from kwbench.data import DataSet, dataset_from_arrays, load_dataset
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.networks.entries import load_entry

NAME = "cifar10/resnet18-autoattack"
REGISTRY = Path(__file__).resolve().parents[2] / "registry.yaml"
PIXELS = SHARED / "data" / "cifar10-exact-subset.npz"
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return read_registry(REGISTRY)


@pytest.fixture(scope="module")
def cifar10() -> DataSet:
    images = dataset_from_arrays(IMAGES, torch.tensor([0, 1, 2, 9]))
    return replace(images, name="cifar10", fixed_classes=True)


@pytest.fixture(scope="module")
def network(registry: Registry, cifar10: DataSet) -> nn.Module:
    return load_entry(registry, NAME, registry.entries[NAME], cifar10).module


def test_it_answers_like_the_network_of_the_package(network: nn.Module) -> None:
    spec = importlib.util.find_spec("pyautoattack")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    examples = Path(spec.submodule_search_locations[0]) / "examples"
    code = importlib.util.spec_from_file_location("autoattacks_resnet", examples / "resnet.py")
    assert code is not None
    assert code.loader is not None
    theirs = importlib.util.module_from_spec(code)
    code.loader.exec_module(theirs)
    original = theirs.ResNet18()
    original.load_state_dict(torch.load(examples / "model_test.pt", weights_only=True, map_location="cpu"))
    with torch.no_grad():
        assert torch.allclose(network(IMAGES), original.eval()(IMAGES), atol=1e-4)


@pytest.mark.skipif(not PIXELS.is_file(), reason="CIFAR-10's pixels are not at hand")
def test_it_is_right_on_original_images(network: nn.Module) -> None:
    """Use the first 64 images to save time. On the first 512 it is right on 94.7 %."""
    batch = load_dataset("cifar10", data=PIXELS).test.batch(range(64))
    with torch.no_grad():
        assert float((network(batch.x).argmax(dim=1) == batch.y).float().mean()) > 0.9


def changed(registry: Registry, **source: str) -> ModelEntry:
    entry = registry.entries[NAME]
    assert entry.checkpoint is not None
    assert entry.checkpoint.source is not None
    other = entry.checkpoint.source.model_copy(update=source)
    return entry.model_copy(update={"checkpoint": entry.checkpoint.model_copy(update={"source": other})})


def test_a_missing_package_and_another_file_are_named(registry: Registry, cifar10: DataSet) -> None:
    with pytest.raises(CannotEvaluate, match="in the package nowhere_installed, which is not installed"):
        load_entry(registry, NAME, changed(registry, package="nowhere_installed/model.pt"), cifar10)
    with pytest.raises(CannotEvaluate, match=r"none\.pt: cannot be read"):
        load_entry(registry, NAME, changed(registry, package="pyautoattack/none.pt"), cifar10)
    with pytest.raises(DamagedData, match=r"state\.py: .* the registry pins"):
        load_entry(registry, NAME, changed(registry, package="pyautoattack/state.py"), cifar10)


@pytest.mark.parametrize("place", [{}, {"url": "https://example.org/a.pt", "package": "a/b.pt"}, {"package": "../b.pt"}])
def test_a_source_is_in_one_place(place: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"one of url and package|package"):
        validate(Source, {"sha256": "0" * 64, **place}, "registry.yaml")
