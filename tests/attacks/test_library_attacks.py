"""Library attacks draw from the global generators; a model neither seeds these for them nor hands them minus infinity."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kwbench.attacks.model_module import ModelModule
from kwbench.outcome import Status
from kwbench.threat import ThreatModel
from support.relaxation import FunctionModule as Applied
from support.small_models import first_images, run, sharp, trained_cnn, wrapped

LINF = ThreatModel.of("linf", "0.15")


@pytest.fixture(autouse=True, scope="module")
def _trained() -> None:
    trained_cnn()  # its first use may not be under no_grad


@pytest.mark.parametrize("seed", [torch.manual_seed, np.random.seed, random.seed], ids=["torch", "numpy", "random"])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("autoattack-part", {"part": "apgd-ce"}),
        ("foolbox:LinfPGD", {"steps": 3}),
        ("foolbox:LinfRepeatedAdditiveUniformNoiseAttack", {"repeats": 5}),
    ],
)
def test_a_model_that_seeds_the_generators_is_attacked_as_one_that_does_not(
    name: str, parameters: dict[str, Any], seed: Callable[[int], Any]
) -> None:
    def seeding(x: Tensor) -> Tensor:
        seed(0)
        logits: Tensor = trained_cnn()(x)
        return logits

    batch = sharp(first_images(8))
    plain, seeded = (
        run(name, parameters, batch, LINF, model=wrapped(module, tile=8)) for module in (trained_cnn(), Applied(seeding))
    )
    assert [(outcome.status, outcome.distance) for outcome in plain] == [
        (outcome.status, outcome.distance) for outcome in seeded
    ]


def _masked(x: Tensor) -> Tensor:
    logits: Tensor = trained_cnn()(x)
    return logits.index_fill(1, torch.tensor([9]), -torch.inf)


def test_libraries_get_finite_logits_that_leave_masked_classes_last() -> None:
    logits = ModelModule(wrapped(Applied(_masked)))(first_images(4).x)
    assert bool(logits.isfinite().all())
    assert bool((logits.argmin(dim=1) == 9).all())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("pgd", {"steps": 5}),
        ("apgd", {"steps": 8, "loss": "dlr"}),
        ("apgd", {"steps": 8, "loss": "probability_margin", "targets": 9}),
        ("deepfool", {"steps": 10}),
        ("cw", {"steps": 100}),
        ("square", {"steps": 100}),
        ("local-search", {"steps": 4, "flips": 10, "restarts": 1}),
        ("autoattack", {"version": "custom", "attacks": ["apgd-ce", "fab-t"]}),
    ],
)
def test_every_attack_copes_with_masked_classes(name: str, parameters: dict[str, Any]) -> None:
    model = wrapped(Applied(_masked), tile=8)
    batch = sharp(first_images(12), model).take(range(8))
    outcomes = run(name, parameters, batch, ThreatModel.of("linf", "0.3"), model=model)
    statuses = [outcome.status for outcome in outcomes]
    assert set(statuses) <= {Status.BROKEN, Status.HELD}
    assert statuses.count(Status.BROKEN) >= 6
    assert all(outcome.prediction != 9 for outcome in outcomes)
