"""Registry entries: networks built from them, and their pinned checkpoints."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from kwbench.data import DataSet, load_dataset
from kwbench.errors import CannotEvaluate, DamagedData, UsageError
from kwbench.networks.entries import build_module, load_entry
from kwbench.training import save_checkpoint
from support.pinned_entries import entry, pinned_registry, weights


def test_a_pinned_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path, network: nn.Module, digits: DataSet) -> None:
    digest = save_checkpoint(network, tmp_path / "deep" / "net.safetensors")
    content = (tmp_path / "deep" / "net.safetensors").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert not list(tmp_path.glob("deep/.*")), "a draft was left behind"
    registry, made = pinned_registry(tmp_path, content)
    loaded = load_entry(registry, "net", made, digits)
    assert loaded.sha256 == digest
    assert not loaded.module.training
    x = digits.test.batch(range(5)).x
    with torch.no_grad():
        assert torch.equal(loaded.module(x), network(x))


def test_a_checkpoint_may_be_read_from_another_path_but_must_match_its_hash(
    tmp_path: Path, network: nn.Module, digits: DataSet
) -> None:
    content = safetensors.torch.save(weights(network))
    registry, made = pinned_registry(tmp_path, content)
    (tmp_path / "net.safetensors").rename(tmp_path / "moved")
    assert load_entry(registry, "net", made, digits, tmp_path / "moved").sha256 == hashlib.sha256(content).hexdigest()
    (tmp_path / "moved").write_bytes(content + b" ")
    with pytest.raises(DamagedData, match=r"moved: .* pins"):
        load_entry(registry, "net", made, digits, tmp_path / "moved")


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path: Path, digits: DataSet) -> None:
    registry, made = pinned_registry(tmp_path, b"x")
    (tmp_path / "net.safetensors").unlink()
    with pytest.raises(CannotEvaluate, match=r"net\.safetensors: .*No such file.*kwbench train net"):
        load_entry(registry, "net", made, digits)
    with pytest.raises(CannotEvaluate, match=r"'net' has no checkpoint in .*kwbench train net"):
        load_entry(registry, "net", entry(), digits)


def test_data_without_the_last_classes_does_not_shrink_the_network(tmp_path: Path, network: nn.Module) -> None:
    np.savez(tmp_path / "few.npz", x_test=np.zeros((3, 1, 8, 8), dtype=np.uint8), y_test=[0, 1, 4])
    registry, made = pinned_registry(tmp_path, safetensors.torch.save(weights(network)))
    few = load_dataset("digits", data=tmp_path / "few.npz")
    assert few.classes == 5
    with torch.no_grad():
        assert load_entry(registry, "net", made, few).module(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_data_unlike_the_data_set_in_a_models_name_is_refused(tmp_path: Path) -> None:
    registry, made = pinned_registry(tmp_path, b"never read")
    for shape, labels, message in (
        ((3, 8, 8), [0, 1, 9], r"own: images are 3 x 8 x 8, those of cifar10, which 'cifar10/net' takes, are 3 x 32 x 32"),
        ((3, 32, 32), [0, 1, 10], "own: holds the label 10, 'cifar10/net' knows the 10 of cifar10"),
    ):
        np.savez(tmp_path / "own.npz", x_test=np.zeros((3, *shape), dtype=np.uint8), y_test=labels)
        with pytest.raises(UsageError, match=message):
            load_entry(registry, "cifar10/net", made, load_dataset("cifar10", data=tmp_path / "own.npz"))


def test_networks_that_cannot_take_the_images_are_refused_when_they_are_built() -> None:
    odd = entry(architecture={"name": "resnet18", "width": 9}, activation={"name": "stochastic_lwta"})
    with pytest.raises(UsageError, match="cannot take images of 1 x 8 x 8: units: 9 channels do not divide"):
        build_module(odd, (1, 8, 8), 10)
    with pytest.raises(UsageError, match="cannot take images of 1 x 1 x 1"):
        build_module(entry(), (1, 1, 1), 10)


def test_normalisation_must_have_a_value_for_each_channel() -> None:
    for mean, std, message in (([0.5], [1.0, 1.0, 1.0], "normalise.mean: has 1"), ([0.5] * 3, [1.0], "normalise.std: has 1")):
        with pytest.raises(UsageError, match=f"{message} values, the images have 3 channels"):
            build_module(entry(normalise={"mean": mean, "std": std}), (3, 8, 8), 10)


def test_building_a_network_draws_random_numbers_for_its_weights_only() -> None:
    noisy = entry(activation={"name": "stochastic_lwta"})
    torch.manual_seed(0)
    build_module(noisy, (1, 8, 8), 10)
    after = torch.rand(1)
    torch.manual_seed(0)
    build_module(entry(), (1, 8, 8), 10)
    assert torch.equal(after, torch.rand(1))


def test_a_built_network_is_in_training_mode() -> None:
    assert build_module(entry(), (1, 8, 8), 10).training
