"""The web page: one self-contained file that loads nothing and runs only its own script; it is complete without scripts."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kwbench.formatting import count_text, duration_text, interval_text, percent, plain
from kwbench.outcome import CLEAN
from kwbench.record.cascade import cascaded_attacks
from kwbench.record.summary import AttackSummary, Summary
from kwbench.report.leaderboard import LEVEL, Board, Row, judging_rule, shown
from kwbench.statistics import Interval
from kwbench.verdict import CAVEAT, verdict_on_record

_TEMPLATES = Path(__file__).resolve().parent / "templates"

# The chart of A_std and A_rob: 200 units are 100 %, with a margin for the dot at either end.
_SCALE, _MARGIN = 200.0, 6.0


def html_page(tables: Sequence[Board]) -> str:
    """Return the boards as one self-contained HTML page."""
    return rendered(
        "report.html.j2",
        boards=[_board_view(board) for board in tables],
        level=f"{100 * LEVEL:g} %",
        caveat=CAVEAT,
    )


def rendered(template: str, **values: Any) -> str:
    """Render a template of this package as a self-contained page, with its style and script."""
    # Always escape: select_autoescape goes by the file's name and would leave *.html.j2 unescaped.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": count_text, "duration": duration_text}
    environment.globals["once"] = cache
    style, script = (_file(name) for name in ("report.css", "report.js"))
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        **values,
    )


@dataclass(frozen=True, slots=True)
class _Figure:
    """An accuracy as the page shows it: value and interval in percent, with `notes` below.

    `order` is the key for sorting; `tint`, 0 to 10, is the cell's colour.
    """

    value: str
    span: str
    order: float
    tint: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Start and width of the interval and position of the value in the chart; None without a number."""

    rob: tuple[str, str, str] | None
    std: tuple[str, str, str] | None
    label: str


def _board_view(board: Board) -> SimpleNamespace:
    key, n = board.key, board.key.n
    ranked = [row for row in board.rows if row.rank is not None]
    return SimpleNamespace(
        title=f"{key.dataset}, {board.threat}",
        suite=key.suite,
        n=n,
        data=key.data[:12],
        eps=str(board.threat.eps),
        norm=key.norm,
        cascade=key.cascade,
        prediction=_prediction(key.prediction),
        labels=board.labels,
        rows=[_row_view(row, board, n) for row in board.rows],
        best=ranked[0].summary.model if ranked else None,
        best_rob=_figure(ranked[0].summary.a_rob, n) if ranked else None,
        ranked=len(ranked),
        tied=[row.summary.model for row in ranked[1:] if row.tied],
        attacks=_attack_parameters(board),
        diagnosed=any(row.summary.findings for row in board.rows),
        earlier=[_row_view(Row(summary, None, None, tied=False), board, n) for summary in board.earlier],
    )


def _row_view(row: Row, board: Board, n: int) -> SimpleNamespace:
    summary = row.summary
    spec = summary.evaluation.spec
    matrix = []
    for label in board.labels:
        figure = shown(row, label, board.key.cascade)
        attack = next((attack for attack in summary.attacks if attack.name == label), None)
        matrix.append(_figure(figure, n, _beneath(attack, n)))
    return SimpleNamespace(
        model=summary.model,
        rank=row.rank,
        tied=row.tied,
        p=None if row.test is None else f"{row.test.p:.2g}",
        complete=summary.complete,
        missing=summary.missing,
        stochastic=summary.stochastic,
        earlier_version=summary.earlier_version,
        std=_figure(summary.a_std, n),
        rob=_figure(summary.a_rob, n),
        paper=_figure(summary.a_rob_as_in_paper, n),
        drawing=_drawing(summary, n),
        verdict=_verdict_view(summary),
        matrix=matrix,
        forwards=sum(attack.forwards for attack in summary.attacks),
        backwards=sum(attack.backwards for attack in summary.attacks),
        seconds=sum(attack.seconds for attack in summary.attacks),
        details=[_attack_view(attack, summary) for attack in (*([summary.clean] if summary.clean else []), *summary.attacks)],
        skipped=list(summary.skipped.items()),
        used=summary.used,
        budget=summary.budget,
        protocol=None if summary.a_protocol is None else (", ".join(summary.protocol), interval_text(summary.a_protocol, n)),
        created=summary.evaluation.created,
        identity=spec.identity[:12],
        provenance=_readable(
            {
                "run": spec.identity,
                "created": summary.evaluation.created,
                **{name: value for name, value in spec.spec.items() if name not in ("attacks", "protocol")},
                "provenance": spec.provenance,
            }
        ),
    )


def _verdict_view(summary: Summary) -> dict[str, Any] | None:
    """The verdict and all findings: those that fire first, doubts before the rest."""
    verdict = verdict_on_record(summary)
    if verdict is None:
        return None
    order = {"doubt": 0, "masking": 1, "note": 2}
    findings = sorted(
        summary.findings, key=lambda finding: (not finding.fires, finding.figure is not None, order[finding.kind])
    )
    return {
        "word": verdict.conclusion,
        # Longer than any name, as it may hold several statements.
        "sentence": Markup(escape(plain(verdict.sentence(), 2000))),
        "findings": [
            {
                "check": finding.check,
                "kind": finding.kind,
                "fires": finding.fires,
                "figure": None if finding.figure is None else f"{finding.figure:.3g}",
                "threshold": f"{finding.threshold:.3g}",
                "statement": Markup(escape(plain(finding.statement, 1000))),
                "samples": len(finding.samples),
            }
            for finding in findings
        ],
    }


def _attack_view(attack: AttackSummary, summary: Summary) -> tuple[Markup, _Figure | None, Markup]:
    """The cells before the accuracy in an attack's row, the accuracy, and the cells after it.

    A record has tens of thousands of these rows; a template would take several times as long.
    """
    n = summary.n
    in_cascade = attack.name in cascaded_attacks(summary.evaluation.spec)
    counts = {
        status: f'{" bad" if status in ("invalid", "error") and count else ""}">{count}'
        for status, count in attack.statuses.items()
    }
    cells = [
        f'">{attack.broke if attack.name != CLEAN else "–"}',
        *(counts[status] for status in ("wrong", "broken", "held", "invalid", "error")),
        f'">{count_text(attack.used)}',
        f'">{"–" if attack.budget is None else count_text(attack.budget)}',
        f'">{count_text(attack.forwards)}',
        f'">{count_text(attack.backwards)}',
        f'">{duration_text(attack.seconds)}',
    ]
    return (
        Markup(f'<tr><th scope="row"><bdi>{escape(plain(attack.name))}</bdi></th><td class="num">{attack.n}</td>'),
        _figure(attack.remaining if in_cascade else attack.accuracy, n, _beneath(attack, n)),
        Markup("".join(f'<td class="num{cell}</td>' for cell in cells) + "</tr>"),
    )


def _beneath(attack: AttackSummary | None, n: int) -> tuple[str, ...]:
    """The notes below an accuracy: the result of the other judging rule if it differs, and the surrogate's own accuracy."""
    if attack is None:
        return ()
    notes = []
    if attack.other_accuracy is not None and attack.other_accuracy != attack.accuracy:
        other = "clipped" if judging_rule(attack) == "distance" else "distance"
        notes.append(f"{other}: {percent(attack.other_accuracy.value, n)}")
    if attack.surrogate_accuracy is not None:
        notes.append(f"on {plain(attack.surrogate, 40)}: {percent(attack.surrogate_accuracy.value, n)}")
    return tuple(notes)


def _attack_parameters(board: Board) -> list[tuple[str, Markup]]:
    parameters: dict[tuple[str, str], Markup] = {}
    for row in board.rows:
        for attack in row.summary.attacks:
            text = json.dumps(attack.spec.spec, sort_keys=True, default=str)
            if (attack.name, text) not in parameters:
                parameters[attack.name, text] = _readable(attack.spec.spec)
    return [(name, text) for (name, _), text in parameters.items()]


@lru_cache(maxsize=65536)
def _figure(interval: Interval | None, n: int, notes: tuple[str, ...] = ()) -> _Figure | None:
    if interval is None:
        return None
    span = f"{percent(interval.low, n)}–{percent(interval.high, n)}"
    return _Figure(percent(interval.value, n), span, round(interval.value, 6), round(10 * interval.value), notes)


def _drawing(summary: Summary, n: int) -> _Drawing:
    def positions(interval: Interval | None) -> tuple[str, str, str] | None:
        if interval is None:
            return None
        low, high = (_MARGIN + _SCALE * end for end in (interval.low, interval.high))
        return f"{low:.1f}", f"{max(high - low, 1.0):.1f}", f"{_MARGIN + _SCALE * interval.value:.1f}"

    label = [f"A_rob {percent(summary.a_rob.value, n)} %" if summary.a_rob else "no A_rob"]
    label.append(f"A_std {percent(summary.a_std.value, n)} %" if summary.a_std else "no A_std")
    return _Drawing(positions(summary.a_rob), positions(summary.a_std), ", ".join(label))


def _prediction(text: str) -> str:
    rule = json.loads(text)
    if not isinstance(rule, Mapping):
        return "not on record"
    if rule.get("kind") == "frozen":
        return f"frozen randomness, seed {rule.get('seed')}"
    return "a single draw" if rule.get("kind") == "draw" else f"{rule.get('kind')} of {rule.get('draws')} draws"


def _readable(value: Mapping[str, Any]) -> Markup:
    # ASCII only, so that control and bidirectional characters appear as escapes.
    return escape(json.dumps(value, indent=1, sort_keys=True, default=str, ensure_ascii=True))


def _finalize(value: Any) -> Any:
    """Jinja applies this to everything that a template prints."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return plain(value)
    return value


def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
