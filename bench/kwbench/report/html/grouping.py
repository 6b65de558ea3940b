"""Which leaderboards share a table: those of one data set and threat model. Its tabs are the suites."""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from kwbench.formatting import plain
from kwbench.record.summary import Summary
from kwbench.report.leaderboard import Board, is_natural
from kwbench.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class Tab:
    """One leaderboard. `label` names the suite, and where several tabs have the same suite also what separates them."""

    id: str
    label: str
    board: Board


@dataclass(frozen=True, slots=True)
class Table:
    """The leaderboards of one data set and threat model, the most informative one first.

    `natural`: every attack is a random natural perturbation, which shows no worst case.
    """

    id: str
    dataset: str
    threat: ThreatModel
    natural: bool
    tabs: tuple[Tab, ...]

    @property
    def models(self) -> int:
        """Number of different models."""
        return len({row.summary.model for tab in self.tabs for row in tab.board.rows})

    @property
    def evaluations(self) -> int:
        """Number of complete evaluations."""
        return sum(row.rank is not None for tab in self.tabs for row in tab.board.rows)


def tables(boards: Sequence[Board], drawn: Collection[str] = ()) -> list[Table]:
    """Group boards into tables: attacks before natural perturbations, the table with the most evaluations first.

    A board without other evaluations than those drawn as curves, whose identities are `drawn`, is left out.
    """
    groups: dict[tuple[str, str, str, bool], list[Board]] = {}
    for board in boards:
        identities = {row.summary.evaluation.spec.identity for row in board.rows}
        if not identities <= set(drawn):
            groups.setdefault((board.key.dataset, board.key.norm, board.key.eps, is_natural(board)), []).append(board)
    made = [
        Table(_slug(dataset, norm, eps, "natural" if natural else ""), dataset, group[0].threat, natural, _tabs(group))
        for (dataset, norm, eps, natural), group in groups.items()
    ]
    made.sort(key=lambda table: (table.natural, -table.evaluations, table.dataset, table.threat.radius))
    return made


def _tabs(boards: Sequence[Board]) -> tuple[Tab, ...]:
    """Return the tabs: diagnosed suites first, then those with the most ranked models."""
    ordered = sorted(boards, key=_importance)
    labels = [_label(board, [other for other in boards if other.key.suite == board.key.suite]) for board in ordered]
    return tuple(
        Tab(_slug(label, str(number)), label, board) for number, (label, board) in enumerate(zip(labels, ordered, strict=True))
    )


def _label(board: Board, namesakes: Sequence[Board]) -> str:
    """Return the name of the suite, and as much as separates the board from others of the same suite."""
    words = [plain(board.key.suite, 60)]
    for mark in _MARKS:
        if len(namesakes) > 1 and len({mark(other) for other in namesakes}) > 1:
            words.append(mark(board))
            namesakes = [other for other in namesakes if mark(other) == mark(board)]
    return ", ".join(words)


def _importance(board: Board) -> tuple[bool, int, int, str]:
    ranked = sum(row.rank is not None for row in board.rows)
    return not any(row.summary.findings for row in board.rows), -ranked, -board.key.n, str(board.key)


# What may separate two boards of one suite, and how a label says it.
_MARKS: tuple[Callable[[Board], str], ...] = (
    lambda board: f"n = {board.key.n}",
    lambda board: f"data {plain(board.key.data[:8])}",
    lambda board: plain(prediction_text(board.rows[0].summary)),
    lambda board: "cascade" if board.key.cascade else "no cascade",
)


def prediction_text(summary: Summary) -> str:
    """Return the rule by which a stochastic model's draws become a prediction."""
    rule = summary.evaluation.origin.get("prediction", {"kind": "draw", "draws": 1})
    if not isinstance(rule, Mapping):
        return "not on record"
    if rule.get("kind") == "frozen":
        return f"frozen randomness, seed {rule.get('seed')}"
    return "a single draw" if rule.get("kind") == "draw" else f"{rule.get('kind')} of {rule.get('draws')} draws"


def _slug(*parts: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-.")[:80] or "table"


def run_file(summary: Summary) -> str:
    """Return the name of an evaluation's page without its suffix: the first 16 digits of the run's identity."""
    identity = summary.evaluation.spec.identity
    hexadecimal = re.fullmatch(r"[0-9a-f]{64}", identity) is not None
    return (identity if hexadecimal else hashlib.sha256(identity.encode()).hexdigest())[:16]
