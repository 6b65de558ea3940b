"""Activations by name: accepted parameters, suggestions for wrong ones, and their display."""

from typing import Any

import pytest

from kwbench.errors import UsageError
from kwbench.networks.activations import (
    Kwta,
    Lwta,
    StochasticLwta,
    activation_factory,
)


@pytest.mark.parametrize("gamma", [0, -0.1, 1.01, "2", "0/5"])
@pytest.mark.parametrize("kind", [Kwta, Lwta])
def test_gamma_must_lie_above_0_and_not_above_1(kind: type, gamma: Any) -> None:
    with pytest.raises(ValueError, match=r"gamma: .* is not in \(0, 1\]"):
        kind(gamma)


@pytest.mark.parametrize("gamma", ["1/0", "a tenth", float("nan"), float("inf"), True, None, [0.1], "1e999999999"])
@pytest.mark.parametrize("kind", [Kwta, Lwta])
def test_gamma_must_be_a_number(kind: type, gamma: Any) -> None:
    with pytest.raises(ValueError, match=r"gamma: .* is not a number"):
        kind(gamma)


def test_unknown_activations_and_parameters_come_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="'kwtaa' is unknown; did you mean 'kwta'"):
        activation_factory("kwtaa", {})
    with pytest.raises(UsageError, match="no parameter 'gama'; did you mean 'gamma'"):
        activation_factory("kwta", {"gama": 0.1})
    with pytest.raises(UsageError, match="'kwta' needs the parameter 'gamma'"):
        activation_factory("kwta", {})
    with pytest.raises(UsageError, match="gamma: 2 is not in"):
        activation_factory("lwta", {"gamma": 2})


def test_every_call_of_a_factory_makes_a_new_module() -> None:
    make = activation_factory("stochastic_lwta", {"units": 4})
    first, second = make(), make()
    assert isinstance(first, StochasticLwta)
    assert first.units == 4
    assert first is not second


def test_activations_print_their_parameters() -> None:
    assert "gamma=1/10" in str(Kwta(0.1))
    assert "gamma=1/10, within=channel" in str(Kwta(0.1, "channel"))
    assert "gamma=1/5, units=5" in str(Lwta(0.2))
    assert "units=2, sampling='hard'" in str(StochasticLwta())
