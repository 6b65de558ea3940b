"""The weights from which training starts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kwbench.config.registry import Normalise
from kwbench.data import DataSet
from kwbench.errors import DamagedData, UsageError
from kwbench.networks.entries import build_module
from kwbench.training import save_checkpoint, train
from support.training import entry, quiet


@pytest.mark.parametrize(("initial", "variance"), [("kaiming_normal", 2), ("pytorch", 1 / 3)])
def test_initial_weights_have_the_variance_that_the_recipe_sets(few: DataSet, initial: str, variance: float) -> None:
    module = train(entry(epochs=1, learning_rate=1e-9, initial=initial), few, quiet)
    wide = max((layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)), key=Tensor.numel)
    assert wide.var().item() * wide[0].numel() == pytest.approx(variance, rel=0.1)


def test_training_starts_from_given_weights_except_in_a_last_layer_of_other_size(few: DataSet, tmp_path: Path) -> None:
    model = entry(epochs=1, learning_rate=1e-9, pretrained="https://example.org/cnn-01234567.pth")
    with pytest.raises(UsageError, match="--weights takes a copy of it, --download fetches it"):
        train(model, few, quiet)
    given = build_module(entry(), (1, 8, 8), 7)
    save_checkpoint(given, tmp_path / "given")
    module = train(model, few, quiet, pretrained=(tmp_path / "given").read_bytes())
    assert torch.allclose(module.get_parameter("conv1.weight"), given.get_parameter("conv1.weight"), atol=1e-6)
    assert module.get_parameter("fc2.weight").shape == (10, 16)
    shifted = model.model_copy(update={"normalise": Normalise(mean=[0.5], std=[0.5])})
    normalised = train(shifted, few, quiet, pretrained=(tmp_path / "given").read_bytes())
    assert torch.allclose(normalised.get_parameter("network.conv1.weight"), given.get_parameter("conv1.weight"), atol=1e-6)
    save_checkpoint(nn.Linear(2, 2), tmp_path / "other")
    with pytest.raises(DamagedData, match=r"cnn-01234567\.pth: weights do not fit the network; missing: conv1\.weight"):
        train(model, few, quiet, pretrained=(tmp_path / "other").read_bytes())
    with pytest.raises(DamagedData, match="not a safetensors file"):
        train(model, few, quiet, pretrained=b"nothing")
