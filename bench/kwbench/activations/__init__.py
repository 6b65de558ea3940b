"""The activations, by the name that registry entries use, each with the parameters it takes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kwbench.activations.kwta import Kwta
from kwbench.activations.lwta import Lwta
from kwbench.activations.stochastic_lwta import StochasticLwta
from kwbench.errors import UsageError, did_you_mean

__all__ = ["ACTIVATIONS", "ActivationFactory", "Kwta", "Lwta", "StochasticLwta", "activation_factory", "stochastic_divergence"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "kwta": Kwta,
    "lwta": Lwta,
    "stochastic_lwta": StochasticLwta,
}

ActivationFactory = Callable[[], nn.Module]


def activation_factory(name: str, parameters: Mapping[str, Any]) -> ActivationFactory:
    """Makes one fresh activation module a call. Raises UsageError for unknown names and impossible parameters."""
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
    """The KL term of eq. 9 over all stochastic layers of the last training pass, a scalar tensor; 0.0 without such layers."""
    return sum((layer.kl for layer in module.modules() if isinstance(layer, StochasticLwta)), start=0.0)
