"""Trained winner-take-all networks as users' own models: the same weights, the activation written in every way.

`slwta_*` and `kwta_*` are the digits networks resnet18-slwta2 and resnet18-kwta0.1; `published_*` is the WideResNet-34-1 for
CIFAR-10 that Panousis et al. published, read from ../shared/checkpoints beside the repository.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from winner_take_all import KWTA, LWTA

from kwbench.networks.architectures import build_network

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = ROOT.parent / "shared" / "checkpoints" / "panousis2021-wrn34-1-slwta.pt"


def digits_network(checkpoint: str, activation: Callable[[], nn.Module]) -> nn.Module:
    network = build_network("resnet18", {"width": 16}, activation, channels=1, classes=10)
    network.load_state_dict(safetensors.torch.load_file(ROOT / "models" / "digits" / f"{checkpoint}.safetensors"))
    return network


def published_network(activation: Callable[[], nn.Module]) -> nn.Module:
    network = build_network("wide_resnet", {"depth": 34, "widen": 1}, activation, channels=3, classes=10)
    published = torch.load(PUBLISHED, map_location="cpu", weights_only=True)["model_state_dict"]
    weights = {}
    for key, tensor in published.items():
        if key.startswith("sub_block1") or "lwta" in key:
            continue
        name = re.sub(r"block(\d)\.layer\.(\d)", lambda at: f"blocks.{5 * (int(at[1]) - 1) + int(at[2])}", key)
        weights[name.replace("convShortcut", "shortcut")] = tensor
    network.load_state_dict(weights)
    return network


for _way, _activation in LWTA.items():
    globals()[f"slwta_{_way}"] = partial(digits_network, "resnet18-slwta2", _activation)
    globals()[f"published_{_way}"] = partial(published_network, _activation)
for _way, _activation in KWTA.items():
    globals()[f"kwta_{_way}"] = partial(digits_network, "resnet18-kwta0.1", partial(_activation, 0.1))
