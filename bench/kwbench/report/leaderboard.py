"""Boards: the evaluations that may be compared with each other, ranked, with those that cannot be told apart from the best."""

from collections.abc import Sequence
from dataclasses import dataclass

from kwbench.record.cascade import cascaded_attacks
from kwbench.record.comparability import ComparisonKey, comparison_key, suite_labels
from kwbench.record.summary import AttackSummary, Summary
from kwbench.statistics import Interval, PairedTest, paired_test
from kwbench.threat import ThreatModel

# Models are told apart from the best at this family-wise level (Holm 1979).
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """A model's place: `rank` from 1, equal for equal A_rob, None if incomplete. `test` is against the best model's A_rob,
    paired and two-sided; `tied` if it does not tell the two apart."""

    standing: Summary
    rank: int | None
    test: PairedTest | None
    tied: bool


@dataclass(frozen=True, slots=True)
class Board:
    """One table: the newest evaluation of each model under one key, best A_rob first, incomplete ones last.

    `labels` are the attacks in suite order. `earlier` are evaluations that a newer one of the same model has replaced.
    """

    key: ComparisonKey
    threat: ThreatModel
    labels: tuple[str, ...]
    rows: tuple[Row, ...]
    earlier: tuple[Summary, ...]


def boards(standings: Sequence[Summary]) -> list[Board]:
    """All boards, in a stable order."""
    groups: dict[ComparisonKey, list[Summary]] = {}
    for each in standings:
        groups.setdefault(comparison_key(each.evaluation), []).append(each)
    return [_board(key, groups[key]) for key in sorted(groups, key=lambda key: tuple(map(str, key)))]


def judging_rule(attack: AttackSummary) -> str:
    """`distance` or `clipped`: how the proposals of a minimum-norm attack were judged."""
    return str(attack.spec.spec.get("parameters", {}).get("judged", "distance"))


def shown(row: Row, label: str, cascade: bool) -> Interval | None:
    """The figure of a row under an attack: its accuracy, or in a cascade what is left after it."""
    for attack in row.standing.attacks:
        if attack.name == label:
            return attack.remaining if cascade else attack.accuracy
    return None


def _board(key: ComparisonKey, group: list[Summary]) -> Board:
    newest: dict[str, Summary] = {}
    earlier = []
    for each in sorted(group, key=lambda each: (each.evaluation.asked, each.evaluation.id)):
        if each.model in newest:
            earlier.append(newest[each.model])
        newest[each.model] = each
    ranked = sorted((each for each in newest.values() if each.a_rob is not None), key=_order)
    waiting = sorted((each for each in newest.values() if each.a_rob is None), key=lambda each: each.model)
    tests = [_test(ranked[0], each) for each in ranked]
    tied = _tied(tests)
    # The best is first, so the first place with a value says how many are better.
    first: dict[float, int] = {}
    rows = [
        Row(each, 1 + first.setdefault(_value(each), place), test if place else None, place in tied)
        for place, (each, test) in enumerate(zip(ranked, tests, strict=True))
    ]
    rows += [Row(each, None, None, tied=False) for each in waiting]
    # Attacks for one kind of model only stand where the suite has them.
    order = list(suite_labels(group[0].evaluation))
    labels: dict[str, None] = {}
    for each in (*ranked, *waiting):
        # What a cascade adds to plain attacks shows in A_rob, and attack by attack in the details.
        hidden = frozenset() if key.cascade else cascaded_attacks(each.evaluation.spec)
        labels |= dict.fromkeys(attack.name for attack in each.attacks if attack.name not in hidden)
    earlier.sort(key=lambda each: (each.model, each.evaluation.id))
    return Board(
        key,
        group[0].threat,
        tuple(sorted(labels, key=lambda label: order.index(label) if label in order else len(order))),
        tuple(rows),
        tuple(earlier),
    )


def _order(standing: Summary) -> tuple[float, float, str]:
    return -_value(standing), -(standing.a_std.value if standing.a_std else 0.0), standing.model


def _value(standing: Summary) -> float:
    return standing.a_rob.value if standing.a_rob is not None else float("nan")


def _test(best: Summary, other: Summary) -> PairedTest | None:
    if best.robust_values is None or other.robust_values is None or best.index.tolist() != other.index.tolist():
        return None
    return paired_test(best.robust_values, other.robust_values, one_sided=False)


def _tied(tests: Sequence[PairedTest | None]) -> set[int]:
    """Places that Holm's procedure does not tell apart from the first; none if the first stands alone."""
    order = sorted((test.p, place) for place, test in enumerate(tests) if test is not None and place > 0)
    for done, (p, _) in enumerate(order):
        if p > LEVEL / (len(order) - done):
            return {place for _, place in order[done:]} | {0}
    return set()
