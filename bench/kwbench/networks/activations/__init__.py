"""The activations by the names of registry entries, and what can be measured of them in a network."""

import inspect
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kwbench.errors import UsageError, did_you_mean
from kwbench.networks.activations.kwta import Kwta
from kwbench.networks.activations.lwta import Lwta
from kwbench.networks.activations.stochastic_lwta import StochasticLwta

__all__ = [
    "ACTIVATIONS",
    "ActivationFactory",
    "Kwta",
    "Lwta",
    "StochasticLwta",
    "activation_factory",
    "effective_sparsity",
    "stochastic_divergence",
]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "kwta": Kwta,
    "lwta": Lwta,
    "stochastic_lwta": StochasticLwta,
}

ActivationFactory = Callable[[], nn.Module]


def activation_factory(name: str, parameters: Mapping[str, Any]) -> ActivationFactory:
    """Return a function that makes a new activation module. Raises UsageError for unknown names and invalid parameters."""
    if name not in ACTIVATIONS:
        raise UsageError(f"activation {name!r} is unknown; {did_you_mean(name, ACTIVATIONS)}")

    known = inspect.signature(ACTIVATIONS[name]).parameters
    for parameter in parameters:
        if parameter not in known:
            raise UsageError(f"activation {name!r} has no parameter {parameter!r}; {did_you_mean(parameter, known)}")
    for parameter, declared in known.items():
        if declared.default is inspect.Parameter.empty and parameter not in parameters:
            raise UsageError(f"activation {name!r} needs the parameter {parameter!r}")

    def make() -> nn.Module:
        return ACTIVATIONS[name](**parameters)

    try:
        make()
    except (TypeError, ValueError) as failure:
        raise UsageError(f"activation {name!r}: {failure}") from None
    return make


def stochastic_divergence(module: nn.Module) -> Any:
    """Return the KL term of eq. 9, the sum of `kl` over all layers that have it, of the last training pass; 0.0 if none has."""
    terms = [getattr(layer, "kl", None) for layer in module.modules()]
    return sum((term for term in terms if isinstance(term, Tensor)), start=0.0)


def effective_sparsity(module: nn.Module, x: Tensor) -> dict[str, Fraction]:
    """Return the share of a sample's values that survive each winner-take-all layer, by the name of the layer.

    It differs from gamma where gamma * N is no whole number (k-WTA) or groups do not divide the channels (LWTA).
    `x` (b, c, h, w) are images for one forward pass, which a module without such layers does not make.
    """
    shares: dict[str, Fraction] = {}

    def watch(name: str, layer: nn.Module) -> RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(layer, Kwta):
                n = layer.competitions(inputs[0])[0].numel()
                shares[name] = Fraction(layer.winners(n), n)
            elif isinstance(layer, Lwta):
                shares[name] = layer.effective_sparsity(inputs[0].shape[1])
            elif isinstance(layer, StochasticLwta):
                shares[name] = Fraction(1, layer.units)

        return layer.register_forward_pre_hook(note)

    handles = [watch(name, layer) for name, layer in module.named_modules() if isinstance(layer, Kwta | Lwta | StochasticLwta)]
    try:
        if handles:
            with torch.no_grad():
                module(x)
    finally:
        for handle in handles:
            handle.remove()
    return shares
