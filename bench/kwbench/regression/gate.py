"""The check of a CI job: whether models became less robust than in a baseline, and the exit code that says so.

A drop counts as a regression only if it exceeds `max_drop` and is significant. A drop that exceeds `max_drop` but may be chance
is undecided, and so is everything that is missing or not comparable; neither ever passes.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kwbench.errors import UsageError
from kwbench.record.comparability import comparison_key
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.regression.baseline import BaselineEntry, read_baseline, values_by_sample, worst_by_sample
from kwbench.regression.differences import agreement, describe_differences
from kwbench.statistics import Interval, PairedTest, difference_interval, paired_test
from kwbench.threat import ThreatModel

# A robust value from which on a sample counts as right.
_RIGHT = 0.5


class Decision(StrEnum):
    """The decision on one model."""

    FINE = "fine"
    REGRESSION = "regression"
    UNDECIDED = "could not tell"

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        return {Decision.FINE: 0, Decision.REGRESSION: 1, Decision.UNDECIDED: 3}[self]


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """One model against its entry in the baseline; accuracies are fractions of 1.

    Attributes:
        model: name of the model.
        dataset: name of the data set.
        threat: norm and radius.
        suite: name of the suite.
        n: number of samples.
        decision: the decision.
        reason: why, with the numbers.
        baseline: A_rob in the baseline.
        now: A_rob of the newest evaluation.
        drop: baseline minus now, paired, with its 95 % interval.
        test: one-sided paired test; None if the two are not comparable.
        run: identity of the newest evaluation.
        broken_by: for the samples that were lost, the attacks behind their worst case with their numbers of samples, most
            first; `clean` where the clean image is misclassified.
    """

    model: str
    dataset: str
    threat: str
    suite: str
    n: int
    decision: Decision
    reason: str
    baseline: float | None = None
    now: Interval | None = None
    drop: Interval | None = None
    test: PairedTest | None = None
    run: str | None = None
    broken_by: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        models: the models of the baseline in its order, then requested models that it lacks.
        new: models on record that the baseline lacks.
        max_drop: tolerated drop, in points.
        alpha: significance level.
    """

    models: tuple[ModelCheck, ...]
    new: tuple[str, ...]
    max_drop: float
    alpha: float

    @property
    def exit_code(self) -> int:
        """1 if a model regressed, otherwise 3 if one is undecided or nothing was checked, otherwise 0."""
        decisions = {model.decision for model in self.models}
        for decision in (Decision.REGRESSION, Decision.UNDECIDED):
            if decision in decisions:
                return decision.exit_code
        return 0 if self.models else Decision.UNDECIDED.exit_code


def check(
    store: Store,
    baseline: Path,
    *,
    max_drop: float = 1.0,
    alpha: float = 0.01,
    models: Collection[str] | None = None,
) -> CheckResult:
    """Compare A_rob of each model's newest evaluation with the baseline, on the same samples.

    A retrained checkpoint under the same name is compared with the old one. What must agree is the model's name, data, samples,
    threat model, suite with its parameters, and rule of prediction.

    Args:
        store: the record.
        baseline: a file that `update_baseline` wrote.
        max_drop: tolerated drop of A_rob in points (percent), in [0, 100].
        alpha: significance level of each model's one-sided test, in (0, 1).
        models: names of the models to check; by default, all of the baseline.

    Raises:
        UsageError: `max_drop` or `alpha` is out of range.
        CannotEvaluate: there is no baseline file, or the record cannot be read.
        DamagedData: the baseline is damaged.
    """
    if not 0 <= max_drop <= 100:
        raise UsageError(f"--max-drop {max_drop}: must be between 0 and 100 points")
    if not 0 < alpha < 1:
        raise UsageError(f"--alpha {alpha}: must be between 0 and 1")
    entries = read_baseline(baseline)
    evaluations, known = store.evaluations(), {entry.model for entry in entries}
    on_record = summaries(store, [evaluation for evaluation in evaluations if evaluation.spec.model in known])
    checks = [
        _check_model(store, entry, [summary for summary in on_record if summary.model == entry.model], max_drop, alpha)
        for entry in entries
        if models is None or entry.model in models
    ]
    for name in sorted(set(models or ()) - known):
        checks.append(ModelCheck(name, "", "", "", 0, Decision.UNDECIDED, "not in the baseline; add it with --update"))
    new = sorted({evaluation.spec.model for evaluation in evaluations} - known)
    return CheckResult(tuple(checks), tuple(new), max_drop, alpha)


def decide(before: ArrayLike, after: ArrayLike, *, max_drop: float, alpha: float) -> tuple[Decision, PairedTest]:
    """Return the decision on paired values in [0, 1], one per sample, and its test; `max_drop` in points."""
    test = paired_test(before, after, one_sided=True)
    # The tolerance is for the rounding of differences: a drop of exactly max_drop is allowed.
    if 100 * test.difference <= max_drop + 1e-9:
        return Decision.FINE, test
    return (Decision.REGRESSION if test.p < alpha else Decision.UNDECIDED), test


def check_json(result: CheckResult) -> dict[str, Any]:
    """Return the result as JSON values; accuracies and drops are fractions of 1."""
    models = [
        {("verdict" if name == "decision" else name): value for name, value in asdict(model).items()} for model in result.models
    ]
    return {
        "exit_code": result.exit_code,
        "max_drop": result.max_drop,
        "alpha": result.alpha,
        "new": list(result.new),
        "models": models,
    }


def _check_model(store: Store, entry: BaselineEntry, on_record: Sequence[Summary], max_drop: float, alpha: float) -> ModelCheck:
    key = entry.key
    threat = str(ThreatModel.of(key.norm, Fraction(key.eps)))

    def undecided(reason: str, *, now: Interval | None = None, run: str | None = None) -> ModelCheck:
        return ModelCheck(
            entry.model, key.dataset, threat, key.suite, key.n, Decision.UNDECIDED, reason, entry.a_rob, now=now, run=run
        )

    if not on_record:
        return undecided("no evaluation on record")
    comparable = [summary for summary in on_record if entry.is_comparable(summary.evaluation)]
    if not comparable:
        keys = {summary.evaluation.id: comparison_key(summary.evaluation) for summary in on_record}
        closest = max(
            (summary.evaluation for summary in on_record),
            key=lambda evaluation: (agreement(key, keys[evaluation.id]), evaluation.recency),
        )
        return undecided(f"not comparable: {describe_differences(keys[closest.id], key)}", run=closest.spec.identity)
    newest = max(comparable, key=lambda summary: summary.evaluation.recency)
    run = newest.evaluation.spec.identity
    if newest.a_rob is None:
        return undecided(f"incomplete: {'; '.join(newest.missing)}", run=run)
    values = values_by_sample(store, newest)
    if values.keys() != entry.values.keys():
        shared = len(values.keys() & entry.values.keys())
        return undecided(f"other samples: {shared} of {len(entry.values)} are the same", now=newest.a_rob, run=run)
    samples = sorted(values)
    before = np.array([entry.values[sample] for sample in samples])
    after = np.array([values[sample] for sample in samples])
    decision, test = decide(before, after, max_drop=max_drop, alpha=alpha)
    worst = worst_by_sample(store, newest)
    # A sample is lost if it was right in most draws and is wrong in most draws now.
    lost = [sample for sample, was, now in zip(samples, before, after, strict=True) if was >= _RIGHT > now]
    broken_by = tuple(Counter(worst[sample] for sample in lost).most_common())
    return ModelCheck(
        entry.model,
        key.dataset,
        threat,
        key.suite,
        key.n,
        decision,
        _reason(decision, test, max_drop, broken_by),
        entry.a_rob,
        newest.a_rob,
        difference_interval(before - after),
        test,
        run,
        broken_by,
    )


def _reason(decision: Decision, test: PairedTest, max_drop: float, broken_by: Sequence[tuple[str, int]]) -> str:
    lost = f"; lost to {', '.join(f'{label} {count}' for label, count in broken_by)}" if broken_by else ""
    points = f"{100 * test.difference:.1f} points"
    if decision is Decision.FINE:
        return f"drop {points}, at most {max_drop:g} allowed"
    if decision is Decision.REGRESSION:
        return f"A_rob: {points} less (worse on {test.lost}, better on {test.gained}, p {test.p:.2g}){lost}"
    return f"A_rob: {points} less, which may be chance (p {test.p:.2g}); more samples can tell{lost}"
