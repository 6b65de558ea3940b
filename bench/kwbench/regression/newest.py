"""The newest evaluation of each model: the one asked for last."""

from collections.abc import Sequence

from kwbench.record.comparability import ComparisonKey, attacks_key, comparison_key
from kwbench.record.summary import Summary


def newest_summaries(summaries: Sequence[Summary]) -> list[Summary]:
    """Return, of evaluations of one model with equal protocol and attacks, only the newest."""
    newest: dict[tuple[str, ComparisonKey, str], Summary] = {}
    for summary in sorted(summaries, key=lambda summary: summary.evaluation.recency):
        newest[summary.model, comparison_key(summary.evaluation), attacks_key(summary.evaluation)] = summary
    return list(newest.values())
