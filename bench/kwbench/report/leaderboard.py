"""Leaderboards: comparable evaluations, ranked, with a test of each model against the best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kwbench.record.cascade import cascaded_attacks
from kwbench.record.comparability import ComparisonKey, comparison_key, suite_labels
from kwbench.record.summary import AttackSummary, Summary
from kwbench.statistics import Interval, PairedTest, paired_test, rank_intervals
from kwbench.threat import ThreatModel

# The family-wise level of the tests against the best model (Holm 1979).
LEVEL = 0.05

# Natural perturbations of earlier versions, whose attacks do not declare that they are.
_NATURAL = {"gaussian-blind", "translation", "rotation", "colour-jitter"}


@dataclass(frozen=True, slots=True)
class Row:
    """A model on a board.

    Args:
        rank: From 1, equal for equal A_rob; None if the evaluation is incomplete.
        test: The paired two-sided test of its A_rob against the best model's.
        tied: Whether that test, corrected for the number of models, finds no difference.
        ranks: The lowest and highest rank that the samples allow, with 95 % confidence; None without a rank.
    """

    summary: Summary
    rank: int | None
    test: PairedTest | None
    tied: bool
    ranks: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """One table: the newest complete evaluation of each model under one key, best A_rob first.

    A model without a complete evaluation is represented by its newest one; these rows are last.

    Args:
        labels: The attacks in suite order.
        earlier: The other evaluations of the same models.
    """

    key: ComparisonKey
    threat: ThreatModel
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    earlier: tuple[Summary, ...]


def boards(summaries: Sequence[Summary], *, any_definition: bool = False) -> list[Board]:
    """Return a board for each set of comparable evaluations, ordered by their keys.

    `any_definition`: evaluations under suites of one name share a board, whatever the attacks of the suite were; the key has
    no `protocol`. Robust accuracies on the same samples remain comparable, those under single attacks perhaps not.
    """
    groups: dict[ComparisonKey, list[Summary]] = {}
    for summary in summaries:
        key = comparison_key(summary.evaluation)
        groups.setdefault(key._replace(protocol="") if any_definition else key, []).append(summary)
    return [_board(key, groups[key]) for key in sorted(groups, key=lambda key: tuple(map(str, key)))]


def judging_rule(attack: AttackSummary) -> str:
    """Return how the results of a minimum-norm attack were judged: `distance` or `clipped`."""
    return str(attack.spec.spec.get("parameters", {}).get("judged", "distance"))


def shown(row: Row, label: str, cascade: bool) -> Interval | None:
    """Return the accuracy of a row under an attack; in a cascade the accuracy after that attack and all before it."""
    for attack in row.summary.attacks:
        if attack.name == label:
            return attack.remaining if cascade else attack.accuracy
    return None


def _board(key: ComparisonKey, group: list[Summary]) -> Board:
    newest: dict[str, Summary] = {}
    earlier = []
    for summary in sorted(group, key=lambda summary: summary.evaluation.recency):
        other = newest.get(summary.model)
        if other is not None and other.complete and not summary.complete:
            earlier.append(summary)
            continue
        if other is not None:
            earlier.append(other)
        newest[summary.model] = summary
    ranked = sorted((summary for summary in newest.values() if summary.a_rob is not None), key=_order)
    incomplete = sorted((summary for summary in newest.values() if summary.a_rob is None), key=lambda summary: summary.model)
    tests = [_test(ranked[0], summary) for summary in ranked]
    tied, ranks = _tied(tests), _ranks(ranked)
    # The first position with a value is the number of models that are better.
    first: dict[float, int] = {}
    rows = [
        Row(summary, 1 + first.setdefault(_value(summary), position), test if position else None, position in tied, span)
        for position, (summary, test, span) in enumerate(zip(ranked, tests, ranks, strict=True))
    ]
    rows += [Row(summary, None, None, tied=False) for summary in incomplete]
    # Attacks for one kind of model, too, keep their position in the suite.
    order = list(suite_labels(group[0].evaluation))
    labels: dict[str, None] = {}
    for summary in (*ranked, *incomplete):
        # A cascade after plain attacks shows in A_rob and in the details, but has no columns.
        hidden = frozenset() if key.cascade else cascaded_attacks(summary.evaluation.spec)
        labels |= dict.fromkeys(attack.name for attack in summary.attacks if attack.name not in hidden)
    earlier.sort(key=lambda summary: (summary.model, summary.evaluation.id))
    return Board(
        key,
        max(group, key=lambda summary: summary.evaluation.recency).threat,
        tuple(sorted(labels, key=lambda label: order.index(label) if label in order else len(order))),
        tuple(rows),
        tuple(earlier),
    )


def _order(summary: Summary) -> tuple[float, float, str]:
    return -_value(summary), -(summary.a_std.value if summary.a_std else 0.0), summary.model


def _value(summary: Summary) -> float:
    return summary.a_rob.value if summary.a_rob is not None else float("nan")


def _test(best: Summary, other: Summary) -> PairedTest | None:
    if best.robust_values is None or other.robust_values is None or not np.array_equal(best.index, other.index):
        return None
    return paired_test(best.robust_values, other.robust_values, one_sided=False)


def _ranks(ranked: Sequence[Summary]) -> list[tuple[int, int] | None]:
    """Return the rank interval of each model; None for all if they were not evaluated on the same samples."""
    if not ranked:
        return []
    values = [summary.robust_values for summary in ranked if summary.robust_values is not None]
    if len(values) < len(ranked) or any(not np.array_equal(ranked[0].index, summary.index) for summary in ranked):
        return [None] * len(ranked)
    return list(zip(*(ends.tolist() for ends in rank_intervals(np.stack(values))), strict=True))


def _tied(tests: Sequence[PairedTest | None]) -> set[int]:
    """Positions that Holm's procedure does not distinguish from the first, which is included; none if it rejects all."""
    order = sorted((test.p, position) for position, test in enumerate(tests) if test is not None and position > 0)
    for rejected, (p, _) in enumerate(order):
        if p > LEVEL / (len(order) - rejected):
            return {position for _, position in order[rejected:]} | {0}
    return set()


def is_natural(board: Board) -> bool:
    """Return whether every attack of a board is a random natural perturbation."""
    attacks = [attack.spec.spec for row in board.rows for attack in row.summary.attacks]
    return bool(attacks) and all(_declares_natural(spec) for spec in attacks)


def _declares_natural(spec: object) -> bool:
    if not isinstance(spec, dict):
        return False
    declared = spec.get("declared")
    return bool(declared.get("natural")) if isinstance(declared, dict) else spec.get("attack") in _NATURAL
