"""Suites with cascades, a weak attack, and runs of them on small real models."""

import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.config.suite import Suite, SuiteAttack
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import evaluate
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.threat import ThreatModel
from support.small_registry import request


@dataclass(frozen=True)
class Corners(Attack):
    """Tries random corners of the ball, and proposes the last that is misclassified, otherwise the last."""

    norms = frozenset({"linf"})
    needs = "labels"
    tries: int = 1

    def doubled(self, times: int) -> "Corners":
        return replace(self, tries=self.tries * 2**times)

    def other_half(self) -> "Corners":
        return self

    def passes(self, stochastic: bool) -> int:
        return self.tries

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        best = x
        for number in range(self.tries):
            corner = (x + threat.radius * (rng.uniform(number, x.shape[1:], -1, 1).sign().to(x))).clamp(0, 1)
            fooled = model.predict(corner)[0] != y
            best = torch.where((fooled | (best == x).flatten(1).all(dim=1)).view(-1, 1, 1, 1), corner, best)
        return best


def suite(*attacks: SuiteAttack, cascade: bool = True, **options: Any) -> Suite:
    return Suite("mine", attacks, cascade=cascade, **options)


def staged(
    label: str,
    attack: str | None = None,
    after: tuple[str, ...] = (),
    escalate: int = 0,
    screen: int | None = None,
    **parameters: Any,
) -> SuiteAttack:
    return SuiteAttack(label, attack or label, parameters=parameters, after=after, escalate=escalate, screen=screen)


def falling(*, cascade: bool = True, **options: Any) -> Suite:
    """Return attacks of which nearly every one breaks some samples, with conditions that hold and that do not."""
    screen = 9 if cascade else None
    return suite(
        staged("corners", escalate=2, screen=screen, tries=3),
        staged("nothing", "noop", screen=screen),
        staged("fgsm"),
        staged("pgd", steps=4, step_size=0.08, after=("fgsm",)),
        staged("never", "pgd", after=("nothing",)),
        cascade=cascade,
        **options,
    )


def falling_request(registry: Path, model: str = "small", **options: Any) -> Request:
    """Return a request for these attacks: on fewer images of the random model, which is asked many times about each."""
    n = 20 if model == "small-random" else 40
    return request(registry, model, **{"suite": falling(), "n": n, "eps": "0.2"} | options)


def changed_copy(db: Path, folder: Path, *changes: str) -> Path:
    """Copy a record and change it by SQL; without checksums, which would show the changes."""
    target = Path(shutil.copy(db, folder / "copy.db"))
    connection = sqlite3.connect(target)
    for change in ("DELETE FROM attack_run_checksums", *changes):
        connection.execute(change)
    connection.commit()
    connection.close()
    return target


def run(evaluation_request: Request, db: Path, **options: Any) -> Evaluation:
    store = Store.open(str(db), create=True)
    try:
        return evaluate(evaluation_request, store, **options)
    finally:
        store.close()


def summary_of(db: Path, evaluation: Evaluation | None = None) -> Summary:
    store = Store.open(str(db))
    try:
        return summaries(store, [evaluation] if evaluation is not None else None)[-1]
    finally:
        store.close()


def value(interval: Any) -> float:
    return float(interval.value)
