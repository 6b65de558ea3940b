"""When training lays out weights and images with channels last."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kwbench.config.registry import ModelEntry
from kwbench.data import DataSet, Split
from kwbench.training import train
from support.training import entry, quiet


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
def test_channels_last_is_used_unless_a_layer_would_copy_its_input(
    few: DataSet, activation: dict[str, Any], precision: str, last: bool
) -> None:
    assert laid_out_last(entry(activation, epochs=1, precision=precision), few) == last


@pytest.mark.parametrize(("width", "last"), [(8, False), (15, False), (16, True)])
def test_channels_last_is_not_used_where_onednn_would_write_beyond_its_memory(few: DataSet, width: int, last: bool) -> None:
    assert laid_out_last(entry(network={"name": "resnet18", "width": width}, epochs=1), few) == last


def test_images_stored_with_channels_last_take_the_memory_layout_of_the_network(few: DataSet) -> None:
    # The layout of torchvision's files.
    stored = np.random.default_rng(0).random((200, 8, 8, 3), dtype=np.float32)
    images = Split(stored.transpose(0, 3, 1, 2), few.train.labels)
    coloured = DataSet("coloured", 10, images, images, images, few.threat)
    narrow = entry(network={"name": "resnet18", "width": 8}, epochs=1, shift=0)
    assert not laid_out_last(narrow, coloured)
    assert laid_out_last(entry(network={"name": "resnet18", "width": 16}, epochs=1, shift=0), coloured)


def laid_out_last(model: ModelEntry, dataset: DataSet) -> bool:
    """Return whether weights and images have channels last in the last batch; all or none must."""
    channels_last: list[bool] = []

    def record_layouts(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1 and layer.kernel_size != (1, 1):
            channels_last.append(layer.weight.is_contiguous(memory_format=torch.channels_last))
            if inputs[0].shape[2] > 1:
                channels_last.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(record_layouts)
    try:
        train(model, dataset, quiet)
    finally:
        hook.remove()
    # The very first pass only checks that the network accepts the images.
    assert len(set(channels_last[len(channels_last) // 2 :])) == 1
    return channels_last[-1]
