"""What each activation and each architecture computes from fixed weights and fixed images."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from golden.parts import Part, Revision, of_class
from golden.subjects import fill, numbers, relu_network
from kwbench.networks.activations import ACTIVATIONS
from kwbench.networks.architectures import ARCHITECTURES, Normalised, Smoothed, build_network

# Parameters of each activation, by case.
ACTIVATION_CASES: dict[str, dict[str, dict[str, Any]]] = {
    "relu": {"": {}},
    "softplus": {"": {}},
    "kwta": {"image": {"gamma": "0.2"}, "channel": {"gamma": "0.2", "within": "channel"}},
    "lwta": {"": {"gamma": "0.25"}},
    "stochastic_lwta": {"hard": {"units": 2}, "four": {"units": 4}, "relaxed": {"units": 2, "sampling": "relaxed"}},
}

# Parameters that keep each architecture small, and the side of its images.
ARCHITECTURE_CASES: dict[str, tuple[dict[str, int], int]] = {
    "resnet18": ({"width": 4}, 32),
    "resnet18_imagenet": ({"width": 4, "pixels": 64}, 32),
    "wide_resnet": ({"depth": 10, "widen": 1, "stem": 4}, 32),
    "wide_resnet_ibp": ({"depth": 10, "widen": 1, "stem": 4}, 32),
    "densenet121": ({"growth": 4}, 32),
    "vgg11": ({"width": 4}, 32),
    "vgg13": ({"width": 4}, 32),
    "vgg16": ({"width": 4}, 32),
    "vgg19": ({"width": 4}, 32),
    "alexnet": ({"width": 4, "hidden": 32, "pixels": 64}, 32),
    "cnn3": ({"width": 4, "hidden": 16}, 32),
    "lenet": ({}, 32),
    "lenet_pni": ({}, 32),
}


def parts() -> list[Part]:
    """The activations, the architectures, and the modules around them."""
    activations = [
        Part(
            f"activation {name}",
            partial(_activation_outcomes, name),
            partial(of_class, kind) if hasattr(kind, "revision") else None,
        )
        for name, kind in ACTIVATIONS.items()
    ]
    architectures = [
        Part(
            f"architecture {name}",
            partial(_architecture_outcomes, name),
            partial(_own, name),
            partial(_others, name),
        )
        for name in ARCHITECTURES
    ]
    wrappers = [
        Part("normalised network", _normalised_outcomes, partial(of_class, Normalised)),
        Part("smoothed network", _smoothed_outcomes, partial(of_class, Smoothed)),
    ]
    return activations + architectures + wrappers


def _activation_outcomes(name: str) -> Mapping[str, Any]:
    outcomes: dict[str, Any] = {}
    for case, parameters in ACTIVATION_CASES[name].items():
        for shape in [(2, 8, 3, 3)] if parameters.get("within") == "channel" else [(2, 8, 3, 3), (2, 16)]:
            activation = ACTIVATIONS[name](**parameters).eval()
            x = numbers(*shape, seed=7).requires_grad_()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                out = activation(x)
                (gradient,) = torch.autograd.grad((out * numbers(*shape, seed=8)).sum(), x)
            label = f"{case} {'image' if len(shape) == 4 else 'vector'}".strip()
            outcomes[label] = {
                "survivors": "".join("01"[bool(value)] for value in (out.abs() > 1e-6).flatten()),
                "values": out.flatten().tolist(),
                "gradient": gradient.flatten().tolist(),
            }
    return outcomes


def _network(name: str) -> nn.Module:
    parameters, _ = ARCHITECTURE_CASES[name]
    return build_network(name, parameters, nn.ReLU, channels=3, classes=10)


def _own(name: str) -> Revision:
    return of_class(type(_network(name)))


def _others(name: str) -> list[Revision]:
    network = _network(name)
    kinds = {type(module) for module in network.modules()} - {type(network)}
    return [of_class(kind) for kind in sorted(kinds, key=lambda kind: kind.__name__) if hasattr(kind, "revision")]


def _architecture_outcomes(name: str) -> Mapping[str, Any]:
    network = _network(name)
    fill(network, seed=11)
    network.eval()
    _, side = ARCHITECTURE_CASES[name]
    x = torch.sigmoid(numbers(3, 3, side, side, seed=12))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return {"": _answers(network(x))}


def _answers(logits: torch.Tensor) -> dict[str, Any]:
    return {"predictions": logits.argmax(dim=1).tolist(), "logits": logits.flatten().tolist()}


def _normalised_outcomes() -> Mapping[str, Any]:
    network = Normalised(relu_network(), mean=[0.3], std=[0.5])
    return {"": _answers(network(torch.sigmoid(numbers(3, 1, 8, 8, seed=12))))}


def _smoothed_outcomes() -> Mapping[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"": _answers(Smoothed(relu_network(), 0.25)(torch.sigmoid(numbers(3, 1, 8, 8, seed=12))))}
