"""Quantised networks: relaxed gradients are those of the float network, and the outputs stay bit for bit."""

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional as F

from kwbench.relaxation import relaxed, survey
from kwbench.threat import ThreatModel
from support.small_models import broken, first_images, run, sharp, trained_cnn, wrapped

# Untyped functions.
AO: Any = quantization


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this kind of quantisation
        yield


def _static(network: nn.Module, *fused: list[str]) -> nn.Module:
    stubbed: Any = nn.Sequential(AO.QuantStub(), *network.children(), AO.DeQuantStub()).eval()
    return _converted(AO.fuse_modules(stubbed, list(fused)) if fused else stubbed)


def _converted(network: Any) -> nn.Module:
    network.qconfig = AO.get_default_qconfig("x86")
    AO.prepare(network, inplace=True)
    network(first_images(200).x)
    converted: nn.Module = AO.convert(network)
    return converted


def _deep() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, groups=2, stride=1),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        ).eval()


def _cosines(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    gradients: list[Tensor] = []
    for function in (one, other):
        leaf = x.clone().requires_grad_()
        gradients += torch.autograd.grad(function(leaf)[:, 3].sum(), leaf)
    return F.cosine_similarity(gradients[0].flatten(1), gradients[1].flatten(1))


@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
@pytest.mark.parametrize("make", [lambda: deepcopy(trained_cnn()), _deep], ids=["cnn", "deep"])
def test_a_quantised_network_has_the_relaxed_gradients_of_the_float_network(
    make: Callable[[], nn.Module], static: bool
) -> None:
    network = make()
    quantised = _static(deepcopy(network), ["1", "2"]) if static else AO.quantize_dynamic(deepcopy(network), {nn.Linear})
    x = first_images(6).x
    assert torch.equal(relaxed(quantised, x.clone().requires_grad_()), quantised(x))
    assert bool((_cosines(lambda leaf: relaxed(quantised, leaf), network, x) > 0.8).all())
    assert survey(quantised, x).unseen == ()
    assert survey(quantised, x).relaxed


def test_relaxed_gradients_break_a_quantised_network_as_exact_ones_break_the_float_network() -> None:
    batch, threat = sharp(first_images(24)), ThreatModel.of("linf", "0.12")
    parameters = {"steps": 20, "loss": "margin"}
    plain = broken(run("apgd", parameters, batch, threat)).sum().item()
    model = wrapped(_static(deepcopy(trained_cnn())))
    quantised = broken(run("apgd", {**parameters, "gradient": {"kind": "relaxed"}}, batch, threat, model=model)).sum().item()
    assert 4 <= plain - 2 <= quantised


def test_sums_and_concatenations_of_quantised_tensors_are_followed() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
            self.last = nn.Linear(512, 10)
            self.enter, self.leave = AO.QuantStub(), AO.DeQuantStub()
            self.sum, self.join = nn.quantized.FloatFunctional(), nn.quantized.FloatFunctional()

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            first, second = self.first(x), self.second(x)
            joined = self.join.cat([self.sum.add(first, second), first], dim=1)
            logits: Tensor = self.leave(self.last(joined.flatten(1)))
            return logits

    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Residual().eval()
    quantised = _converted(deepcopy(network))
    x = first_images(4).x
    assert bool((_cosines(lambda leaf: relaxed(quantised, leaf), network, x) > 0.9).all())
