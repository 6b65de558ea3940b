"""Certificates are sound, and complete on small networks."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from certification.small_networks import NETWORKS, images, network
from defences import exact_truth
from kwbench.certification import certify, trace
from kwbench.certification.certificate import reduce
from kwbench.certification.program import least_margin
from kwbench.errors import CannotEvaluate
from kwbench.networks.activations import StochasticLwta
from kwbench.threat import ThreatModel
from support.small_models import first_images

SHAPE = (1, 4, 4)


def label_of(module: nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad():
        return int(module(x[None]).argmax())


def sampled(x: torch.Tensor, threat: ThreatModel, count: int, seed: int = 1) -> torch.Tensor:
    """Return images of the ball, half of them at corners."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((count, *x.shape), generator=generator) * 2 - 1
    noise[::2] = noise[::2].sign()
    if threat.norm == "l2":
        noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (x + threat.radius * noise).clamp(0, 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reduced_system_computes_the_network(name: str) -> None:
    module, x, threat = network(name), images(1)[0], ThreatModel.of("linf", "0.2")
    label = label_of(module, x)
    system = reduce(trace(module, SHAPE), x, label, threat, steps=5)
    z = sampled(x, threat, 64)
    _, margins = system.forward(z.double().flatten(1))
    with torch.no_grad():
        logits = module(z)
    expected = logits[:, [label]] - logits
    others = [j for j in range(3) if j != label]
    torch.testing.assert_close(margins.float(), expected[:, others], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_multiply_adds_of_an_operation_are_those_that_torch_counts(name: str) -> None:
    graph = trace(network(name), SHAPE)
    assert any(node.affine for node in graph)
    for node in graph:
        if node.affine is not None:
            argument = torch.zeros((1, *graph[node.parents[0]].shape), dtype=torch.double)
            with FlopCounterMode(display=False) as counter:
                result = node.affine.forward(argument)
            assert node.multiply_adds == max(counter.get_total_flops() // 2, result.numel())


@pytest.mark.parametrize("name", NETWORKS)
def test_branch_and_bound_ends_at_the_minimum_that_the_mixed_integer_program_finds(name: str) -> None:
    module, x = network(name), images(2)
    graph, agreed = trace(module, SHAPE), 0
    for row in range(2):
        label = label_of(module, x[row])
        for eps in ("0.05", "0.2"):
            threat = ThreatModel.of("linf", eps)
            certificate = certify(graph, x[row], label, threat, budget=60)
            system = reduce(graph, x[row], label, threat, steps=0)
            least = min(least_margin(system, margin, seconds=20).bound for margin in range(2))
            assert certificate.bound <= least + 1e-6
            if abs(least) > 1e-3:
                assert certificate.certified == (least > 0)
                assert certificate.margin >= least - 1e-6
                agreed += 1
    assert agreed >= 3


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    eps=st.floats(0.01, 0.3),
)
def test_no_image_of_a_ball_has_a_margin_below_its_bound(name: str, seed: int, norm: str, eps: float) -> None:
    module, x = network(name, seed), images(1, seed)[0]
    threat = ThreatModel.of(norm, round(eps, 3))
    label = label_of(module, x)
    certificate = certify(trace(module, SHAPE), x, label, threat, budget=0.0)
    if norm == "l1":
        z = x.repeat(64, 1, 1, 1).flatten(1)
        z[torch.arange(64), torch.arange(64) % 16] += threat.radius * (1 - 2 * (torch.arange(64) // 16 % 2))
        z = z.clamp(0, 1).view(64, *x.shape)
    else:
        z = sampled(x, threat, 256)
    with torch.no_grad():
        logits = module(z)
    margins = logits[:, label] - logits[:, [j for j in range(3) if j != label]].amax(dim=1)
    assert float(margins.min()) >= certificate.bound


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["relu", "kwta", "kwta_wide"])
def test_what_is_certified_is_what_was_solved(kind: str) -> None:
    module, batch = exact_truth.FACTORIES[kind](), first_images(50)
    graph, threat = trace(module, (1, 8, 8)), ThreatModel.of("linf", exact_truth.SIZES[kind].eps)
    with torch.no_grad():
        correct = module(batch.x).argmax(dim=1) == batch.y
    certified = [
        bool(correct[row]) and certify(graph, batch.x[row], int(batch.y[row]), threat, budget=30).certified for row in range(50)
    ]
    truths = exact_truth.truths(kind)
    assert not any(proved and not stands for proved, stands in zip(certified, truths, strict=True))
    assert sum(proved == stands for proved, stands in zip(certified, truths, strict=True)) >= 48


def test_a_certificate_covers_the_rounding_of_the_network() -> None:
    # In exact arithmetic the margin is 1e-4 everywhere. In float32 the logits around 1e4 are off by more.
    linear = nn.Linear(16, 2)
    module = nn.Sequential(nn.Flatten(), linear)
    with torch.no_grad():
        linear.weight.copy_(torch.full((2, 16), 1e4))
        linear.bias.copy_(torch.tensor([1e-4, 0.0]))
    certificate = certify(trace(module.eval(), SHAPE), images(1)[0], 0, ThreatModel.of("linf", "0.01"), budget=1)
    assert not certificate.certified
    linear.weight.requires_grad_(False).fill_(1e-2)
    assert certify(trace(module.eval(), SHAPE), images(1)[0], 0, ThreatModel.of("linf", "0.01"), budget=1).certified


def test_a_certificate_covers_the_tolerance_of_the_judge() -> None:
    # Of a single pixel, whose product is rounded only once. The margin is 0 at a distance of eps + within.
    linear, x = nn.Linear(1, 2), torch.full((1, 1, 1), 0.5)
    module = nn.Sequential(nn.Flatten(), linear)
    for within, certified in ((0.5e-6, False), (1.5e-6, True)):
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[1000.0], [0.0]]))
            linear.bias.copy_(torch.tensor([-1000 * (0.5 - 0.1 - within), 0.0]))
        result = certify(trace(module.eval(), (1, 1, 1)), x, 0, ThreatModel.of("linf", "0.1"), budget=1)
        assert abs(result.bound - 1000 * (within - 1e-6)) < 3e-4
        assert result.certified == certified


def test_the_budget_ends_a_search() -> None:
    module, x = network("relu, two layers"), images(1)[0]
    started = time.monotonic()
    certificate = certify(trace(module, SHAPE), x, label_of(module, x), ThreatModel.of("linf", "0.3"), budget=0.0)
    assert time.monotonic() - started < 5
    assert certificate.branches <= 4


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softplus()), "the layer Softplus"),
        (nn.Sequential(StochasticLwta(), nn.Flatten()), "StochasticLwta|followed"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double(), "another precision"),
    ],
    ids=["softplus", "stochastic", "double"],
)
def test_unknown_layers_are_refused_by_name(module: nn.Module, reason: str) -> None:
    with pytest.raises(CannotEvaluate, match=f"not certified.*({reason})"):
        trace(module.eval(), SHAPE)


def test_a_forward_pass_that_branches_on_values_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(CannotEvaluate, match="cannot be followed"):
        trace(Branching().eval(), SHAPE)
