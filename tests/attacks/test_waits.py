"""Attacks wait for a GPU at most once between two passes, and find there what they find on a CPU."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from kwbench.attacks import build_attack
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel
from support.small_models import first_images, normed_cnn, sharp
from support.waits import counting_waits

# Waits before the first step and after the last one: for shapes, target classes, restarts and the work that was done.
APART = 13
# The first five steps of Auto-PGD in lower precision ask for which samples to look ahead, too.
CHOOSING = {"apgd": 6}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("pgd", "linf", {"steps": 40}),
    ("pgd", "l2", {"steps": 40, "precision": "folded"}),
    ("mim", "linf", {"steps": 20, "precision": "bfloat16"}),
    ("apgd", "linf", {"steps": 30}),
    ("apgd", "linf", {"steps": 30, "precision": "bfloat16"}),
    ("apgd", "l2", {"steps": 30, "targets": 9, "finalists": 2, "loss": "dlr", "precision": "folded"}),
    ("square", "linf", {"steps": 60}),
    ("square", "l2", {"steps": 60, "precision": "folded"}),
    ("cw", "l2", {"steps": 15, "binary_search_steps": 2}),
    ("cw", "linf", {"steps": 15, "step_size": 0.02, "largest_const": 0.2}),
    ("deepfool", "l2", {"steps": 15}),
]


class Counted(Model):
    """Counts its calls."""

    calls = 0

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """See Model."""
        self.calls += 1
        return super().__call__(x, rows)


@cache
def planned() -> Counted:
    """A model whose choices are made, so that an attack does not wait for trials."""
    model = Counted(normed_cnn(), name="normed", classes=10, shape=(1, 8, 8), tile=16)
    images = first_images(64).x
    model.plan_passes(images[:16])
    for precision in ("float32", "folded", "bfloat16"):
        with model.computing_in(precision):
            for gradients in (True, False):
                model.batch_sizes(gradients=gradients)
            model(images[:16])
    return model


@pytest.mark.parametrize(
    ("name", "norm", "parameters"), CASES, ids=[f"{name} {norm} {p.get('precision', '')}" for name, norm, p in CASES]
)
def test_an_attack_waits_at_most_once_a_pass_and_finds_the_same(
    name: str, norm: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, model = sharp(first_images(48)), planned()
    threat = ThreatModel.of(norm, {"linf": "0.1", "l2": "0.6"}[norm])
    attack = build_attack(name, parameters)

    def proposed() -> tuple[Tensor, tuple[list[int], list[int]]]:
        with model.metering(len(batch)):
            z = attack(model, batch.x, batch.y, threat, SampleRandom(0, name, batch.samples))
            return z, model.work()

    on_cpu, work_on_cpu = proposed()
    model.calls = 0
    with counting_waits(monkeypatch) as waits:
        z, work = proposed()
    assert torch.equal(z, on_cpu)
    assert work == work_on_cpu
    assert not torch.equal(z, batch.x)
    assert model.calls > APART / 2
    assert sum(waits.values()) <= model.calls + APART + CHOOSING.get(name, 0), waits


def test_reading_a_value_or_a_number_of_values_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    with counting_waits(monkeypatch) as waits:
        assert not x.is_cpu
        x[mask] = 1.0  # a masked assignment of a number counts nothing
        x[torch.tensor([0, 1])].to(x.device, non_blocking=True)
        assert not waits
        x[mask] = x[mask]
        assert bool(mask.any())
        mask.cpu().numpy().any()
        float(x.sum())
        x.to(x.device)
        mask.nonzero()
    assert waits == {"x[mask]": 1, "x[mask] =": 1, "__bool__": 1, "cpu": 1, "__float__": 1, "to": 1, "nonzero": 1}
    assert x.is_cpu
