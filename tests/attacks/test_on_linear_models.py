"""On linear models the distance to the boundary has a closed form, and every attack must reach it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kwbench.attacks import ATTACKS, build_attack
from kwbench.data import Batch
from kwbench.judge import judge, judge_clean
from kwbench.model import Model
from kwbench.outcome import Status
from kwbench.threat import ThreatModel
from support.small_models import Linear, digits, first_images, run, wrapped

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


def _problem(classes: int, n: int = 12) -> tuple[Model, Batch, Tensor]:
    """A random linear model, images in the middle of the pixel range, and the differences of its rows (n, k - 1, pixels)."""
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn((classes, 64), generator=generator).clamp(-2, 2)
    # Distances to the boundaries are a few hundredths, and pixels are far enough from black and white never to be clipped.
    x = 0.5 + 0.05 * weight[torch.arange(n) % classes].view(n, 1, 8, 8)
    x = x + 0.1 * (torch.rand(x.shape, generator=generator) - 0.5)
    bias = -(weight @ x.flatten(1).mean(dim=0))
    model = wrapped(Linear(weight, bias), classes=classes)
    y = model.predict(x)[0]
    batch = Batch(tuple(f"{row:032x}" for row in range(n)), tuple(range(n)), x, y)
    others = torch.stack([torch.cat([weight[:k], weight[k + 1 :]]) - weight[k] for k in y.tolist()])
    return model, batch, others


def _distances(model: Model, batch: Batch, others: Tensor, norm: str) -> Tensor:
    """Return the distances: the least |margin| over the dual norm of the difference of weights."""
    logits = model(batch.x).double()
    keep = torch.ones_like(logits, dtype=torch.bool).scatter(1, batch.y[:, None], False)
    gaps = logits.gather(1, batch.y[:, None]) - logits[keep].view(len(batch), -1)
    distances: Tensor = (gaps / others.double().norm(p=DUAL[norm], dim=2)).amin(dim=1)
    return distances


# How far beyond the boundary an attack may need to reach, as a factor of the distance, and why.
FIXED: dict[str, tuple[dict[str, Any], float]] = {
    "fgsm": ({}, 1.001),
    "pgd": ({}, 1.01),  # the start is random
    "mim": ({}, 1.001),
    "autoattack": ({"version": "custom", "attacks": ["apgd-ce"]}, 1.01),
    "foolbox": ({"attack": "LinfBasicIterativeAttack"}, 1.001),
}
FACTOR = 0.999  # below the distance nothing may break, except by float32 rounding of the logits


@pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name in FIXED for norm in ("linf", "l2", "l1") if norm in ATTACKS[name].norms]
)
def test_with_two_classes_a_sample_breaks_just_beyond_its_distance(name: str, norm: str) -> None:
    parameters, reach = FIXED[name]
    if name == "foolbox":
        parameters = {"attack": parameters["attack"].replace("Linf", {"linf": "Linf"}.get(norm, norm.upper()))}
    if name == "pgd":
        parameters, reach = {"steps": 100}, reach if norm == "linf" else 1.05
    model, batch, others = _problem(2)
    if norm == "l1":
        # One pixel moves at a time and may reach the end of its range inside the ball: only soundness has a closed form.
        reach = None  # type: ignore[assignment]
    for row, near in enumerate(_distances(model, batch, others, norm).tolist()[: 4 if name == "autoattack" else None]):
        alone = batch.take([row])
        [below] = run(name, parameters, alone, ThreatModel.of(norm, f"{near * FACTOR:.9f}"), model=model)
        assert below.status is Status.HELD, (row, near)
        if reach is not None:
            [above] = run(name, parameters, alone, ThreatModel.of(norm, f"{near * reach:.9f}"), model=model)
            assert above.status is Status.BROKEN, (row, near)


MINIMUM: dict[str, tuple[dict[str, Any], float]] = {
    "deepfool": ({}, 1.05),  # overshoot of 2 %, and 1e-4 of distance
    # The attack climbs for the class of the largest logit, which may not be the nearest; tau falls in steps of 3 %.
    "cw": ({"steps": 400}, 1.15),
}


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", MINIMUM)
def test_minimum_norm_attacks_find_the_distance(name: str, norm: str, classes: int) -> None:
    parameters, factor = MINIMUM[name]
    model, batch, others = _problem(classes)
    near = _distances(model, batch, others, norm)
    reached = torch.tensor(
        [outcome.distance or torch.nan for outcome in run(name, parameters, batch, ThreatModel.of(norm, "0.5"), model=model)]
    )
    assert bool((reached >= near * FACTOR).all())
    assert bool((reached <= near * factor + 2e-4).all()), (reached / near).max()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "name", ["fgsm", "pgd", "apgd", "mim", "square", "rays", "gaussian-noise", "random-sign", "autoattack", "deepfool", "cw"]
)
def test_with_ten_classes_nothing_breaks_below_the_distance(name: str, norm: str) -> None:
    model, batch, others = _problem(10)
    near = _distances(model, batch, others, norm)
    eps = near.median().item()
    safe = batch.take((near > eps * 1.001).nonzero().squeeze(1).tolist())
    parameters: dict[str, dict[str, Any]] = {
        "square": {"steps": 200},
        "rays": {"queries": 200},
        "apgd": {"targets": 9, "steps": 20},
        "cw": {"steps": 50},
        "pgd": {"loss": "margin", "restarts": 3},
        "autoattack": {"version": "custom", "attacks": ["apgd-t", "fab-t"]},
    }
    outcomes = run(name, parameters.get(name, {}), safe, ThreatModel.of(norm, f"{eps:.9f}"), model=model)
    assert {outcome.status for outcome in outcomes} == {Status.HELD}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_ten_classes_margin_pgd_with_restarts_breaks_every_sample_within_its_distance(norm: str) -> None:
    model, batch, others = _problem(10)
    near = _distances(model, batch, others, norm)
    eps = near.median().item() * 1.5
    close = batch.take((near < eps / 1.5).nonzero().squeeze(1).tolist())
    parameters = {"loss": "margin", "restarts": 10, "steps": 60}
    outcomes = run("pgd", parameters, close, ThreatModel.of(norm, f"{eps:.9f}"), model=model)
    assert {outcome.status for outcome in outcomes} == {Status.BROKEN}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_breaks_a_linear_model_of_one_sign_at_its_distance(norm: str) -> None:
    """If all weights agree, one large square is the best direction, and Square must come near it."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.ones(64) if norm == "linf" else 1 + 0.1 * torch.rand(64, generator=generator)
    model = wrapped(Linear(torch.stack([-slope, slope]), torch.tensor([33.0, -33.0])), classes=2)
    x = torch.full((4, 1, 8, 8), 0.5)
    batch = Batch(tuple(f"{row:032x}" for row in range(4)), tuple(range(4)), x, model.predict(x)[0])
    distance = (33 - 0.5 * slope.sum()).abs() / slope.norm(p=DUAL[norm])
    factor = 1.1 if norm == "linf" else 2.0  # in l2 its bumps have both signs
    outcomes = run("square", {"steps": 1500}, batch, ThreatModel.of(norm, f"{distance * factor:.6f}"), model=model)
    assert {outcome.status for outcome in outcomes} == {Status.BROKEN}
    outcomes = run("square", {"steps": 300}, batch, ThreatModel.of(norm, f"{distance * 0.999:.6f}"), model=model)
    assert {outcome.status for outcome in outcomes} == {Status.HELD}


@pytest.mark.parametrize("name", ["pgd", "mim", "apgd", "transfer", "autoattack"])
def test_no_default_gradient_attack_leaves_more_than_fgsm_on_a_linear_network(name: str) -> None:
    """Trained by least squares; the worst corner of the ball is known for each rival class."""
    train, batch = digits().train.batch(range(600)), first_images(64)
    flat = torch.cat([train.x.flatten(1), torch.ones(600, 1)], dim=1)
    solution = (
        10
        * torch.linalg.lstsq(
            torch.cat([flat, 3 * torch.eye(65)]), torch.cat([torch.eye(10)[train.y], torch.zeros(65, 10)])
        ).solution.T
    )
    model, threat = wrapped(Linear(solution[:, :-1].contiguous(), solution[:, -1].contiguous())), ThreatModel.of("linf", "0.05")

    def left(name: str) -> int:
        attack = build_attack(name, {}, lambda _: model)
        outcomes = judge(model, attack, name, batch, threat, 0, judge_clean(model, batch, 0))
        return sum(outcome.status is Status.HELD for outcome in outcomes)

    assert 10 < left("fgsm") < 60
    assert left(name) <= left("fgsm")
