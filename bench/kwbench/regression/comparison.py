"""Comparison of two models: paired tests on the same samples, under every protocol that both were evaluated with."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kwbench.errors import CannotEvaluate, UsageError, did_you_mean
from kwbench.record.certificates import bounds_text
from kwbench.record.comparability import comparison_key
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.regression.newest import newest_summaries
from kwbench.statistics import Interval, PairedTest, difference_interval, paired_test


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two models on the same samples under one protocol.

    Attributes:
        first: the numbers of the first model.
        second: the numbers of the second model.
        a_std: two-sided paired test of A_std.
        a_std_difference: first - second, with its 95 % interval.
        a_rob: two-sided paired test of A_rob.
        a_rob_difference: first - second, with its 95 % interval.
    """

    first: Summary
    second: Summary
    a_std: PairedTest
    a_std_difference: Interval
    a_rob: PairedTest
    a_rob_difference: Interval


def compare(store: Store, first: str, second: str) -> list[PairedComparison]:
    """Compare the newest evaluations of two models, under every protocol that both have.

    Raises:
        UsageError: a model is not on record.
        CannotEvaluate: the two have no complete, comparable evaluations.
    """
    evaluations = store.evaluations()
    names = {evaluation.spec.model for evaluation in evaluations}
    for name in (first, second):
        if name not in names:
            raise UsageError(f"model {name!r} is not on record; {did_you_mean(name, names)}")
    on_record = summaries(store, [evaluation for evaluation in evaluations if evaluation.spec.model in (first, second)])
    ours, theirs = (
        {
            comparison_key(summary.evaluation): summary
            for summary in newest_summaries([summary for summary in on_record if summary.model == name])
        }
        for name in (first, second)
    )
    pairs = [_compare_pair(ours[key], theirs[key]) for key in ours if key in theirs]
    comparisons = [comparison for comparison in pairs if comparison is not None]
    if not comparisons:
        raise CannotEvaluate(
            f"{first} and {second} have no complete evaluations on the same samples with the same suite and threat model"
        )
    return comparisons


def comparison_json(comparisons: Sequence[PairedComparison]) -> list[dict[str, Any]]:
    """Return comparisons as JSON values; differences are first - second, fractions of 1."""
    return [
        {
            "first": pair.first.model,
            "second": pair.second.model,
            "dataset": pair.first.dataset,
            "n": pair.first.n,
            "threat": {"norm": pair.first.threat.norm, "eps": pair.first.threat.radius, "exact": pair.first.threat.eps_text},
            "suite": pair.first.evaluation.spec.suite,
            "a_std": _test_json(pair.first.a_std, pair.second.a_std, pair.a_std_difference, pair.a_std),
            "bounds": {"first": bounds_text(pair.first), "second": bounds_text(pair.second)},
            "a_rob": _test_json(pair.first.a_rob, pair.second.a_rob, pair.a_rob_difference, pair.a_rob),
        }
        for pair in comparisons
    ]


def _compare_pair(first: Summary, second: Summary) -> PairedComparison | None:
    """Return the comparison of two evaluations under one protocol; None if one is incomplete or the samples differ."""
    if first.index.tolist() != second.index.tolist():
        return None
    if first.clean_values is None or second.clean_values is None:
        return None
    if first.robust_values is None or second.robust_values is None:
        return None
    return PairedComparison(
        first,
        second,
        paired_test(first.clean_values, second.clean_values, one_sided=False),
        difference_interval(first.clean_values - second.clean_values),
        paired_test(first.robust_values, second.robust_values, one_sided=False),
        difference_interval(first.robust_values - second.robust_values),
    )


def _test_json(first: Interval | None, second: Interval | None, difference: Interval, test: PairedTest) -> dict[str, Any]:
    return {
        "first": asdict(first) if first else None,
        "second": asdict(second) if second else None,
        "difference": asdict(difference),
        "lost": test.lost,
        "gained": test.gained,
        "p": test.p,
        "method": test.method,
    }
