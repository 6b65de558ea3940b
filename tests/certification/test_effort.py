"""Effort is counted, so that a search ends at the same place everywhere."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from certification.small_networks import images, network
from defences import exact_truth
from kwbench.certification import certify, trace
from kwbench.certification.certificate import reduce
from kwbench.certification.dual import Dual, Problems, Slopes
from kwbench.certification.effort import Effort, OutOfEffort, affordable, pass_seconds
from kwbench.threat import ThreatModel
from support.small_models import first_images


def test_what_is_spent_is_never_more_than_the_effort() -> None:
    effort = Effort(1e-3)
    assert effort.take(1e6)
    assert not effort.take(1e6)
    with pytest.raises(OutOfEffort, match="the effort ran out"):
        effort.spend(1e6)
    assert effort.seconds <= 1e-3


def test_a_part_counts_as_spent() -> None:
    effort = Effort(1.0)
    assert effort.part(0.25).allows(4e8)
    assert effort.seconds == 0.25
    assert Effort().part(0.5).allows(1e15)


def test_the_same_effort_proves_the_same_and_more_proves_more() -> None:
    batch, graph = first_images(1), trace(exact_truth.kwta_wide(), (1, 8, 8))
    threat = ThreatModel.of("linf", "0.075")

    def bound(seconds: float) -> tuple[float, int]:
        made = certify(graph, batch.x[0], int(batch.y[0]), threat, effort=Effort(seconds))
        return made.bound, made.branches

    assert bound(0.06) == bound(0.06)
    assert bound(0.06)[0] <= bound(0.5)[0]
    with pytest.raises(OutOfEffort):
        bound(1e-5)


def test_bounds_that_suffice_are_climbed_no_further_and_the_others_as_before() -> None:
    x, threat = images(1)[0], ThreatModel.of("linf", "0.2")
    module = network("relu, two layers")
    system = reduce(trace(module, (1, 4, 4)), x, int(module(x[None]).argmax()), threat, steps=0)
    ends = {}
    for enough in (0.0, torch.inf):
        effort = Effort()
        dual = Dual(system.ball, system.levels, effort)
        whole = Problems.of(system.margins, system.levels).take(torch.zeros(8, dtype=torch.long))
        # Some bounds suffice from the start, some after a few steps, some never.
        initial = dual.evaluate(whole, [Slopes.initial(units, 8) for units in whole.units])[0]
        problems = replace(whole, constant=whole.constant - initial + torch.linspace(0.05, -0.1, 8))
        slopes = [Slopes.initial(units, 8) for units in problems.units]
        ends[enough] = (*dual.optimise(problems, slopes, 30, enough=enough), effort.seconds)
        assert torch.allclose(dual.evaluate(problems, ends[enough][1]).float(), ends[enough][0], atol=1e-5)
    (short, _, spent), (full, _, whole_cost) = ends[0.0], ends[torch.inf]
    enough_early = full > 0
    assert 0 < int(enough_early.sum()) < 8
    assert bool((short[enough_early] > 0).all())
    assert torch.allclose(short[~enough_early], full[~enough_early], atol=1e-6)
    assert spent < whole_cost


def test_searches_of_tiny_networks_get_a_least_effort_and_of_large_ones_a_minute() -> None:
    assert pass_seconds(trace(exact_truth.relu(), (1, 8, 8))) < 1e-5
    assert affordable(0.0) == 0.5
    assert affordable(1.2345) == 1.2
    assert affordable(1e6) == 60


def test_following_a_network_imports_no_compiler() -> None:
    code = (
        "import sys; from torch import nn; from kwbench.certification import trace;"
        "trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval(), (1, 8, 8));"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
