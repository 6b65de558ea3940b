"""Certify the images that an evaluation leaves standing, one at a time, and put each certificate on record."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kwbench.evaluation.execution.evaluator import open_evaluator
from kwbench.evaluation.execution.tasks import Observe
from kwbench.evaluation.fingerprint import told_apart
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import Progress, evaluate
from kwbench.evaluation.studies.experiment import recorded_on_model
from kwbench.experiments.certificates import Certificates
from kwbench.outcome import Status
from kwbench.record.certificates import CERTIFICATE
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store


@dataclass(frozen=True)
class Certified:
    """The images of an evaluation that are certified, those that its attacks left standing, and the bounds of the latter.

    Positions are those in the split. A bound is NaN where too many units are undecided.
    """

    evaluation: Evaluation
    standing: tuple[int, ...]
    bounds: tuple[float, ...]
    seconds: float

    @property
    def certified(self) -> tuple[int, ...]:
        """Return the positions of the certified images."""
        return tuple(index for index, bound in zip(self.standing, self.bounds, strict=True) if bound > 0)


def certify_standing(
    request: Request,
    store: Store,
    budget: float,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    command: str = "",
    time_limit: float | None = None,
) -> Certified:
    """Evaluate a model, then certify what stands within `budget` seconds an image.

    Certificates on record are not made again; an interrupted command continues.

    Raises CannotEvaluate for a model with randomness or unknown layers, else as evaluations do.
    """
    evaluation = evaluate(request, store, report, command=command, time_limit=time_limit)
    rows = [outcome for run in evaluation.attack_runs.values() for outcome in store.outcomes(run)]
    fallen = {outcome.index for outcome in rows if outcome.status is not Status.HELD}
    standing = sorted({outcome.index for outcome in rows} - fallen)
    evaluator = open_evaluator(request, time_limit)
    bounds, seconds = [], 0.0
    facts = told_apart(evaluator.facts, store)
    try:
        experiment = Certificates(budget=budget)
        for done, index in enumerate(standing):
            made = recorded_on_model(
                facts,
                CERTIFICATE,
                experiment,
                store,
                [index],
                lambda index=index: evaluator.execute(Observe([index], experiment)),  # type: ignore[misc]
                command=command,
            )
            bounds.append(float(made.arrays["bound"][0]))
            seconds += float(np.nansum(made.arrays["seconds"]))
            total = len(standing)
            report(Progress(request.model, CERTIFICATE, done + 1, total, done + 1, total))
    finally:
        evaluator.close()
    return Certified(evaluation, tuple(standing), tuple(bounds), seconds)
