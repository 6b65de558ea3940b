"""An attack and an estimator from outside the package: one class each, and one line in a dictionary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from kwbench.attacks import ATTACKS
from kwbench.attacks.attack import Attack
from kwbench.evaluation.runner import evaluate
from kwbench.geometry import project, steepest
from kwbench.gradients import ESTIMATORS, EXACT, Estimate, Estimator, Gradient, Objective
from kwbench.model import Model
from kwbench.outcome import Status
from kwbench.randomness import SampleRandom
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.threat import ThreatModel
from support.small_registry import fast_suite, request, write_registry


@dataclass(frozen=True)
class Halved(Estimator):
    """An estimator that returns half the exact gradient."""

    evidence_group = "exact"
    revision = 7

    kind: Literal["halved"] = "halved"

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        estimate = EXACT(model, x, objective, rng, rows)
        return Estimate(estimate.logits, estimate.values, estimate.gradients / 2)

    def passes(self, values: int = 1) -> int:
        return EXACT.passes(values)


@dataclass(frozen=True)
class Leap(Attack):
    """An attack of one step of length eps that lowers the true logit."""

    norms = frozenset({"linf"})
    needs = "gradients"

    gradient: Gradient = EXACT

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        def objective(logits: Tensor) -> Tensor:
            return -logits.gather(1, y[:, None]).T

        rows = torch.arange(len(x), device=x.device)
        slope = self.gradient(model, x, objective, rng, rows).gradients[0]
        return project(x + threat.radius * steepest(slope, threat.norm), x, threat)

    def passes(self, stochastic: bool) -> int:
        return self.gradient.passes()


def test_one_class_and_one_line_make_an_attack_that_is_judged_and_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ATTACKS, "leap", Leap)
    monkeypatch.setitem(ESTIMATORS, "halved", Halved)
    suite = fast_suite("leap", "pgd", settings=("leap.gradient.kind=halved",))
    store = Store.open(str(tmp_path / "results.db"), create=True)
    try:
        evaluation = evaluate(request(write_registry(tmp_path), suite=suite, n=48, eps="0.15"), store)
        (summary,) = summaries(store, [evaluation])
        outcomes = store.outcomes(evaluation.attack_runs["leap"])
    finally:
        store.close()
    assert {outcome.status for outcome in outcomes} == {Status.BROKEN, Status.HELD, Status.WRONG}
    assert {(outcome.forwards, outcome.backwards) for outcome in outcomes if outcome.status is not Status.WRONG} == {(1, 1)}
    leap = next(attack for attack in summary.attacks if attack.name == "leap")
    assert leap.broke == sum(outcome.status is Status.BROKEN for outcome in outcomes) > 0
    assert leap.spec.spec["parameters"] == {"gradient": {"kind": "halved"}}
    assert leap.spec.spec["revisions"] == {"attack": 1, "gradient": 7}
    assert leap.spec.spec["declared"]["evidence_group"] == "exact"
