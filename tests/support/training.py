"""Registry entries to train: a small CNN, its recipe, and a recipe of every kind of training."""

from typing import Any

from torch import nn

from kwbench.config.registry import ModelEntry
from kwbench.config.strict_yaml import validate
from kwbench.training import Epoch

CNN = {"name": "cnn3", "width": 4, "hidden": 16}
RECIPE: dict[str, Any] = {"epochs": 2, "learning_rate": 0.05, "seed": 7, "batch_size": 32, "shift": 1}


def entry(activation: dict[str, Any] | None = None, network: dict[str, Any] = CNN, **recipe: Any) -> ModelEntry:
    """Return an entry to train: the small recipe with these keys added or replaced."""
    return validate(
        ModelEntry,
        {"architecture": network, "activation": activation or {"name": "relu"}, "recipe": RECIPE | recipe},
        "registry.yaml",
    )


def quiet(_: Epoch) -> None:
    """Report no progress."""


def bits(module: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every tensor of a state dict."""
    return {key: tensor.numpy().tobytes() for key, tensor in module.state_dict().items()}


LOWERING = {"start": 0.5, "step": 0.2, "epochs": 1, "learning_rate": 0.02, "final_epochs": 1}
ADVERSARY = {"eps": 0.2, "steps": 2, "step_size": 0.1, "warmup_epochs": 1}
# A recipe of every kind of training, with the activation of its network.
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
