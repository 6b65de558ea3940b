"""Certificates beside attacks: certify what the attacks of an evaluation leave standing, where bounds are not vacuous."""

from collections.abc import Callable

import numpy as np

from kwbench.certification.effort import affordable
from kwbench.evaluation.execution.executors import Executor
from kwbench.evaluation.execution.tasks import Observe
from kwbench.evaluation.request import Facts, Request
from kwbench.evaluation.studies.experiment import recorded_on_model
from kwbench.experiments.certificates import Certificates
from kwbench.experiments.gaussian import GaussianDraws
from kwbench.outcome import CLEAN, Status
from kwbench.record.certificates import CERTIFICATE, GAUSSIAN, Bounds, bounds_by_question, question
from kwbench.record.evaluation import Evaluation
from kwbench.record.store import Store

# Images that show whether bounds are vacuous, and images of one measurement on record.
_SCREEN, _TOGETHER = 8, 16
# Nominal seconds an image below which networks of convolutions are hardly ever certified.
_LEAST = 1.0
# Draws of a sample.
_FEWEST_DRAWS, _MOST_DRAWS = 200, 10_000


def certify_beside(
    request: Request,
    executor: Executor,
    facts: Facts,
    evaluation: Evaluation,
    store: Store,
    report: Callable[[int, int], None] = lambda done, images: None,
    *,
    command: str = "",
) -> None:
    """Put certificates of the images on record that the attacks of a finished evaluation left standing.

    Only if the suite has a complete search. If none of a few images is certified, the bounds are vacuous and the others are
    not bounded. The effort an image is that of the complete search; with `auto`, all images together may take what the
    attacks took, in nominal seconds of their passes. So the record depends neither on the machine nor on interruptions.
    """
    search = request.suite.complete_search
    if search is None or facts.prospects is None:
        return
    asked = search.parameters.get("effort")
    if facts.prospects.sigma is not None and facts.threat.norm == "l2" and asked != 0:
        _count_draws(executor, facts, evaluation, store, report, command)
    if facts.prospects.hopeless is not None:
        return
    standing, passes = _standing(evaluation, facts, store) if asked != 0 else ([], 0)
    if not standing:
        return
    automatic = affordable(passes * facts.prospects.pass_seconds / len(standing), _LEAST)
    effort = float(asked) if isinstance(asked, int | float) else automatic
    experiment = Certificates(budget=None, effort=effort)
    spread = np.unique(np.linspace(0, len(standing) - 1, _SCREEN).round().astype(int)).tolist()
    screen = [standing[position] for position in spread]
    rest = [row for row in standing if row not in set(screen)]
    for phase in (screen, rest):
        known = _known(facts, store)
        due = [row for row in phase if not _is_settled(known, facts.samples[row], effort)]
        tasks = [Observe(due[start : start + _TOGETHER], experiment) for start in range(0, len(due), _TOGETHER)]
        done = len(phase) - len(due) + (len(screen) if phase is rest else 0)
        for task, arrays in executor.map(tasks):
            assert isinstance(task, Observe)
            recorded_on_model(facts, CERTIFICATE, experiment, store, task.rows, lambda made=arrays: made, command=command)  # type: ignore[misc]
            done += len(task.rows)
            report(done, len(standing))
        known = _known(facts, store)
        if not any(known[facts.samples[row]].certified for row in phase if facts.samples[row] in known):
            return


def _count_draws(
    executor: Executor,
    facts: Facts,
    evaluation: Evaluation,
    store: Store,
    report: Callable[[int, int], None],
    command: str,
) -> None:
    """Count right draws of each sample, about as many as the attacks took passes."""
    n = len(facts.samples)
    passes = _standing(evaluation, facts, store)[1]
    experiment = GaussianDraws(draws=int(min(max(passes // n, _FEWEST_DRAWS), _MOST_DRAWS)))
    task = Observe(list(range(n)), experiment)
    ((_, arrays),) = executor.map([task])
    recorded_on_model(facts, GAUSSIAN, experiment, store, task.rows, lambda: arrays, command=command)
    report(n, n)


def _standing(evaluation: Evaluation, facts: Facts, store: Store) -> tuple[list[int], int]:
    """Return the rows that no attack broke, and the passes of all attacks over all samples."""
    fallen: set[str] = set()
    passes = 0
    for label, run in evaluation.attack_runs.items():
        for outcome in store.outcomes(run):
            if outcome.status is not Status.HELD:
                fallen.add(outcome.sample)
            if label != CLEAN:
                passes += outcome.forwards + outcome.backwards
    return [row for row, sample in enumerate(facts.samples) if sample not in fallen], passes


def _known(facts: Facts, store: Store) -> Bounds:
    return bounds_by_question(store.experiments(of=CERTIFICATE)).get(question(facts.identity), {})


def _is_settled(known: Bounds, sample: str, effort: float) -> bool:
    bound = known.get(sample)
    return bound is not None and (bound.certified or bound.effort >= effort)
