"""Complete search on networks whose truth is known."""

import os

import pytest
import torch
from torch import Tensor, nn

from defences import exact_truth
from kwbench.attacks import build_attack
from kwbench.attacks.complete_search import _neighbour
from kwbench.certification import trace
from kwbench.certification.certificate import reduce
from kwbench.certification.program import _without_output
from kwbench.errors import UsageError
from kwbench.geometry import distance
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import first_images, wrapped

COUNT = 12


def propose(model: Model, rows: list[int], eps: str, **parameters: int) -> Tensor:
    batch = first_images(COUNT).take(rows)
    attack = build_attack("complete-search", parameters)
    return attack(
        model, batch.x, batch.y, ThreatModel.of("linf", eps), SampleRandom(0, "complete-search", tuple(batch.samples))
    )


@pytest.mark.parametrize("kind", ["relu", "kwta"])
def test_branches_find_every_adversarial_example_that_exists(kind: str) -> None:
    model, eps = wrapped(exact_truth.FACTORIES[kind]()), exact_truth.SIZES[kind].eps
    batch, rows = first_images(COUNT), list(range(COUNT))
    z = propose(model, rows, eps, steps=20, restarts=4, branches=400)
    held = (model.predict(z)[0] == batch.y).tolist()
    assert held == exact_truth.truths(kind)[:COUNT]
    assert float(distance(batch.x, z, "linf").max()) <= float(eps) + 1e-6
    assert float(z.min()) >= 0
    assert float(z.max()) <= 1


def test_proposals_do_not_depend_on_the_batch() -> None:
    model = wrapped(exact_truth.relu())
    together = propose(model, [3, 5], "0.05", steps=5, restarts=2, branches=4)
    assert torch.equal(together[1:], propose(model, [5], "0.05", steps=5, restarts=2, branches=4))


def test_a_program_around_an_image_lowers_its_margin() -> None:
    batch, threat = first_images(1), ThreatModel.of("linf", "0.12")
    graph = trace(exact_truth.relu(), (1, 8, 8))
    system = reduce(graph, batch.x[0], int(batch.y[0]), threat, steps=0)
    x = batch.x[0].flatten()
    margins = system.forward(x.double()[None])[1][0]
    margin = int(margins.argmin())
    z, least = _neighbour(graph, system, x, int(batch.y[0]), margin, float(margins[margin]), 0.02)
    assert least < float(margins[margin]) - 1e-3
    assert 0 < float((z - x).abs().max()) <= 0.02 + 1e-6


def test_programs_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with _without_output():
        os.write(1, b"as HiGHS does")
    print("as everybody does")
    assert capfd.readouterr().out == "as everybody does\n"


def test_networks_that_it_does_not_know_keep_their_images() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus())
    z = propose(wrapped(module), [0, 1], "0.2", steps=2, restarts=1)
    assert torch.equal(z, first_images(2).x)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="branches and neighbourhoods must not be negative"):
        build_attack("complete-search", {"branches": -1})
