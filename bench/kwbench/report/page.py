"""The web page: one file that loads nothing, runs no script but its own, and says the same without it."""

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

# The drawing of A_std and A_rob: 200 units are 100 %, with room for a dot at either end.
_SCALE, _MARGIN = 200.0, 6.0


def html_page(tables: Sequence[Board]) -> str:
    """The boards as one self-contained HTML page."""
    return rendered(
        "report.html.j2",
        boards=[_board_view(board) for board in tables],
        level=f"{100 * LEVEL:g} %",
        caveat=CAVEAT,
    )


def rendered(template: str, **values: Any) -> str:
    """A template of ours as a self-contained page, with its style and script."""
    # Escaping never depends on a file's name: with select_autoescape, *.html.j2 would go out raw.
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
    style, script = (_own(name) for name in ("report.css", "report.js"))
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        **values,
    )


@dataclass(frozen=True, slots=True)
class _Figure:
    """An accuracy as the page shows it. `tint` is its tenth, 0 to 10, for the cell's colour; `notes` stand beneath."""

    value: str
    span: str
    order: float
    tint: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Positions along the drawing's axis; None where there is no number."""

    rob: tuple[str, str, str] | None
    std: tuple[str, str, str] | None
    words: str


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
        best=ranked[0].standing.model if ranked else None,
        best_rob=_figure(ranked[0].standing.a_rob, n) if ranked else None,
        ranked=len(ranked),
        tied=[row.standing.model for row in ranked[1:] if row.tied],
        attacks=_attack_parameters(board),
        judged=any(row.standing.findings for row in board.rows),
        earlier=[_row_view(Row(each, None, None, tied=False), board, n) for each in board.earlier],
    )


def _row_view(row: Row, board: Board, n: int) -> SimpleNamespace:
    each = row.standing
    spec = each.evaluation.spec
    matrix = []
    for label in board.labels:
        figure = shown(row, label, board.key.cascade)
        attack = next((attack for attack in each.attacks if attack.name == label), None)
        matrix.append(_figure(figure, n, _beneath(attack, n)))
    return SimpleNamespace(
        model=each.model,
        rank=row.rank,
        tied=row.tied,
        p=None if row.test is None else f"{row.test.p:.2g}",
        complete=each.complete,
        missing=each.missing,
        stochastic=each.stochastic,
        std=_figure(each.a_std, n),
        rob=_figure(each.a_rob, n),
        paper=_figure(each.a_rob_as_in_paper, n),
        drawing=_drawing(each, n),
        verdict=_verdict_view(each),
        matrix=matrix,
        forwards=sum(attack.forwards for attack in each.attacks),
        backwards=sum(attack.backwards for attack in each.attacks),
        seconds=sum(attack.seconds for attack in each.attacks),
        details=[_attack_view(attack, each) for attack in (*([each.clean] if each.clean else []), *each.attacks)],
        skipped=list(each.skipped.items()),
        used=each.used,
        budget=each.budget,
        protocol=None if each.a_protocol is None else (", ".join(each.protocol), interval_text(each.a_protocol, n)),
        created=each.evaluation.created,
        identity=spec.identity[:12],
        provenance=_readable(
            {
                "run": spec.identity,
                "created": each.evaluation.created,
                **{name: value for name, value in spec.spec.items() if name not in ("attacks", "protocol")},
                "provenance": spec.provenance,
            }
        ),
    )


def _verdict_view(standing: Summary) -> dict[str, Any] | None:
    """The verdict, and every finding behind it: those that fire first, doubts before the rest."""
    found = verdict_on_record(standing)
    if found is None:
        return None
    order = {"doubt": 0, "masking": 1, "note": 2}
    findings = sorted(standing.findings, key=lambda each: (not each.fires, each.figure is not None, order[each.kind]))
    return {
        "word": found.conclusion,
        # Longer than any name: it may hold several statements.
        "sentence": Markup(escape(plain(found.sentence(), 2000))),
        "findings": [
            {
                "check": each.check,
                "kind": each.kind,
                "fires": each.fires,
                "figure": None if each.figure is None else f"{each.figure:.3g}",
                "threshold": f"{each.threshold:.3g}",
                "statement": Markup(escape(plain(each.statement, 1000))),
                "samples": len(each.samples),
            }
            for each in findings
        ],
    }


def _attack_view(attack: AttackSummary, standing: Summary) -> tuple[Markup, _Figure | None, Markup]:
    """What stands before and after the figure in an attack's line. A record has tens of thousands of these lines, which
    take a template several times as long."""
    n = standing.n
    left = attack.name in cascaded_attacks(standing.evaluation.spec)
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
        _figure(attack.remaining if left else attack.accuracy, n, _beneath(attack, n)),
        Markup("".join(f'<td class="num{cell}</td>' for cell in cells) + "</tr>"),
    )


def _beneath(attack: AttackSummary | None, n: int) -> tuple[str, ...]:
    """Small print beneath a figure: the other judging rule where it differs, the surrogate's own accuracy."""
    if attack is None:
        return ()
    found = []
    if attack.other_accuracy is not None and attack.other_accuracy != attack.accuracy:
        other = "clipped" if judging_rule(attack) == "distance" else "distance"
        found.append(f"{other}: {percent(attack.other_accuracy.value, n)}")
    if attack.surrogate_accuracy is not None:
        found.append(f"on {plain(attack.surrogate, 40)}: {percent(attack.surrogate_accuracy.value, n)}")
    return tuple(found)


def _attack_parameters(board: Board) -> list[tuple[str, Markup]]:
    found: dict[tuple[str, str], Markup] = {}
    for row in board.rows:
        for attack in row.standing.attacks:
            text = json.dumps(attack.spec.spec, sort_keys=True, default=str)
            if (attack.name, text) not in found:
                found[attack.name, text] = _readable(attack.spec.spec)
    return [(name, text) for (name, _), text in found.items()]


@lru_cache(maxsize=65536)
def _figure(interval: Interval | None, n: int, notes: tuple[str, ...] = ()) -> _Figure | None:
    if interval is None:
        return None
    span = f"{percent(interval.low, n)}–{percent(interval.high, n)}"
    return _Figure(percent(interval.value, n), span, round(interval.value, 6), round(10 * interval.value), notes)


def _drawing(standing: Summary, n: int) -> _Drawing:
    def places(interval: Interval | None) -> tuple[str, str, str] | None:
        if interval is None:
            return None
        low, high = (_MARGIN + _SCALE * end for end in (interval.low, interval.high))
        return f"{low:.1f}", f"{max(high - low, 1.0):.1f}", f"{_MARGIN + _SCALE * interval.value:.1f}"

    words = [f"A_rob {percent(standing.a_rob.value, n)} %" if standing.a_rob else "no A_rob"]
    words.append(f"A_std {percent(standing.a_std.value, n)} %" if standing.a_std else "no A_std")
    return _Drawing(places(standing.a_rob), places(standing.a_std), ", ".join(words))


def _prediction(text: str) -> str:
    rule = json.loads(text)
    if not isinstance(rule, Mapping):
        return "not on record"
    if rule.get("kind") == "frozen":
        return f"frozen randomness, seed {rule.get('seed')}"
    return "one answer" if rule.get("kind") == "draw" else f"{rule.get('kind')} of {rule.get('draws')} draws"


def _readable(value: Mapping[str, Any]) -> Markup:
    # ASCII only: control and bidirectional characters come out spelt.
    return escape(json.dumps(value, indent=1, sort_keys=True, default=str, ensure_ascii=True))


def _finalize(value: Any) -> Any:
    """Applied to everything that the template prints."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return plain(value)
    return value


def _own(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
