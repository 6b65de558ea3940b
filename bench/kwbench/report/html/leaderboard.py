"""The rows of a leaderboard as the page shows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Literal

import numpy as np
from markupsafe import Markup, escape

from kwbench.formatting import count_text, duration_text, percent, plain
from kwbench.record.summary import Summary
from kwbench.report.drawing.lines import Line, Panel, panels_picture
from kwbench.report.figures.figure import short
from kwbench.report.html.best import best_model, known_elsewhere, points_text, span_text
from kwbench.report.html.charts import chart_image
from kwbench.report.html.grouping import Tab, Table, run_file
from kwbench.report.html.model_facts import ModelFacts
from kwbench.report.leaderboard import Board, Row, shown
from kwbench.report.page import symbols
from kwbench.statistics import Interval
from kwbench.verdict import Verdict

# A chart names its points up to this number; the best ones only beyond it.
_NAMED = 14


Remark = Literal["earlier version", "other attacks"]


@dataclass(frozen=True, slots=True)
class PaperClaim:
    """The lowest robust accuracy, in percent, that a paper claims for a network; `attack` is the attack of that cell."""

    paper: str
    attack: str
    percent: float
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An evaluation and what the page shows beside its numbers.

    `row` and `board` are None for an evaluation that a newer one replaces, `href` where evaluations have no pages.
    """

    summary: Summary
    row: Row | None
    board: Board | None
    facts: ModelFacts
    verdict: Verdict | None
    claim: PaperClaim | None
    href: str | None
    remark: Remark | None = None


# What separates an evaluation from most others of its board.
_REMARKS: dict[Remark, str] = {
    "earlier version": "measured by an earlier version of kwbench",
    "other attacks": "the suite of this name had other attacks or parameters when this model was evaluated",
}


@dataclass(frozen=True, slots=True)
class _Cell:
    """A table cell: what it shows, and the value by which the column is sorted."""

    html: Markup
    order: float | str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the leaderboard.

    `group` names the columns that are shown and hidden together. The page offers a filter for a `facet`, and for each value of
    the column. `hint` explains the heading. `cell` returns None where there is nothing to show; see `_is_filled`.
    """

    key: str
    title: Markup
    cell: Callable[[Entry], _Cell | None]
    numeric: bool = False
    group: str = ""
    facet: str = ""
    hint: str = ""


def board_view(table: Table, tab: Tab, entries: Sequence[Entry]) -> SimpleNamespace:
    """Return what the template shows of a board."""
    board, key = tab.board, tab.board.key
    columns = [column for column in _columns(tab) if column.key in _FIXED or _is_filled(column, entries)]
    ranked = [entry for entry in entries if entry.row is not None and entry.row.rank is not None]
    return SimpleNamespace(
        id=tab.id,
        label=tab.label,
        suite=key.suite,
        n=key.n,
        data=key.data[:12],
        cascade=key.cascade,
        columns=columns,
        rows=[Markup(_row(entry, columns)) for entry in entries],
        models=len(entries),
        best=best_model(ranked),
        all_earlier_versions=all(entry.summary.earlier_version for entry in entries),
        earlier=[(summary, run_file(summary)) for summary in board.earlier],
        chart=_chart(ranked) if len(ranked) > 1 else None,
        verdicts=[(entry.summary.model, _whole(entry.verdict.sentence())) for entry in entries if entry.verdict],
    )


def _is_filled(column: Column, entries: Sequence[Entry]) -> bool:
    """Return whether a column has a cell; of the number of parameters, whether most models have one."""
    filled = (column.cell(entry) is not None for entry in entries)
    return 2 * sum(filled) > len(entries) if column.key == "parameters" else any(filled)


def table_view(table: Table, boards: Sequence[SimpleNamespace]) -> SimpleNamespace:
    """Return what the template shows of a table."""
    return SimpleNamespace(
        id=table.id,
        dataset=table.dataset,
        threat=str(table.threat),
        title=f"{table.dataset}, {table.threat}",
        natural=table.natural,
        models=table.models,
        boards=boards,
        best_known=None if table.natural else known_elsewhere(table),
    )


# Columns that every table has.
_FIXED = ("rank", "model", "clean", "robust")


def _columns(tab: Tab) -> list[Column]:
    cascade = tab.board.key.cascade
    attacks = [_attack_column(label, cascade, f"attack-{number}") for number, label in enumerate(tab.board.labels)]
    of_paper = any("paper_attacks" in row.summary.evaluation.spec.spec for row in tab.board.rows)
    rob, std = Markup("A<sub>rob</sub>"), Markup("A<sub>std</sub>")
    return [
        Column("rank", Markup("Rank"), _rank, numeric=True, hint="the ranks that these samples allow, 95 % confidence"),
        Column("model", Markup("Model"), _model),
        Column(
            "clean",
            Markup("Clean<br>{}").format(std),
            lambda entry: _accuracy(entry.summary, entry.summary.a_std),
            numeric=True,
        ),
        Column(
            "claimed",
            Markup("Paper<br>claims"),
            _claimed,
            numeric=True,
            group="claims",
            hint="lowest accuracy under an attack in the paper's table",
        ),
        Column(
            "protocol",
            Markup("Usual<br>protocol"),
            lambda entry: _accuracy(entry.summary, entry.summary.a_protocol),
            numeric=True,
            group="claims",
            hint="accuracy under the attacks that papers usually report, measured here",
        ),
        Column(
            "robust",
            Markup("Robust<br>{}").format(rob),
            lambda entry: _accuracy(entry.summary, entry.summary.a_rob),
            numeric=True,
            hint="share of samples that no attack broke",
        ),
        Column(
            "certified",
            Markup("Certified"),
            lambda entry: _accuracy(entry.summary, entry.summary.a_certified),
            numeric=True,
            hint="share of samples that no image of the ball breaks, which is proved; robust accuracy cannot be below",
        ),
        Column(
            "overestimate",
            Markup("Over-<br>estimate"),
            _overestimate,
            numeric=True,
            hint="usual protocol minus robust accuracy, in points, with its 98 % interval",
        ),
        Column("verdict", Markup("Verdict"), _verdict, facet="Verdict"),
        Column(
            "lowest",
            Markup("Paper's<br>lowest") if of_paper else Markup("Lowest<br>single"),
            _lowest,
            numeric=True,
            group="attacks",
            hint=f"lowest accuracy under one attack alone{', of those in the table of the paper' if of_paper else ''}",
        ),
        *attacks,
        Column(
            "architecture",
            Markup("Architecture"),
            lambda entry: _text(entry.facts.architecture),
            group="details",
            facet="Architecture",
        ),
        Column(
            "activation", Markup("Activation"), lambda entry: _text(entry.facts.activation), group="details", facet="Activation"
        ),
        Column("training", Markup("Training"), lambda entry: _text(entry.facts.training), group="details", facet="Training"),
        Column("predictions", Markup("Predictions"), _predictions, group="filters", facet="Predictions"),
        Column("parameters", Markup("Para-<br>meters"), _parameters, numeric=True, group="details"),
        Column("paper", Markup("Paper"), _paper, group="details", facet="Paper"),
        Column("evaluated", Markup("Evaluated"), _evaluated, group="cost"),
        Column("passes", Markup("Passes per<br>sample"), _passes, numeric=True, group="cost"),
        Column("time", Markup("Time"), _time, numeric=True, group="cost"),
    ]


def _attack_column(label: str, cascade: bool, key: str) -> Column:
    def cell(entry: Entry) -> _Cell | None:
        interval = None if entry.row is None else shown(entry.row, label, cascade)
        return None if interval is None else _tinted(interval, entry.summary.n)

    return Column(key, escape(plain(label, 40)), cell, numeric=True, group="attacks")


def _row(entry: Entry, columns: Sequence[Column]) -> str:
    cells = [_cell_html(column, column.cell(entry)) for column in columns]
    return f"<tr{'' if entry.summary.complete else ' class=incomplete'}>{''.join(cells)}</tr>"


def _cell_html(column: Column, cell: _Cell | None) -> str:
    kind = "num" if column.numeric else ""
    if cell is None:
        nothing = "not certified" if column.key == "certified" else "–"
        return f'<td class="{kind} none" data-order="{-1 if column.numeric else ""}">{nothing}</td>'
    if column.key == "model":
        return f'<th scope="row" data-order="{escape(plain(cell.order))}">{cell.html}</th>'
    strong = " strong" if column.key == "robust" else ""
    return f'<td class="{kind}{strong}" data-order="{escape(plain(cell.order))}">{cell.html}</td>'


def _rank(entry: Entry) -> _Cell | None:
    if entry.row is None or entry.row.rank is None:
        return None
    low, high = entry.row.ranks or (entry.row.rank, entry.row.rank)
    return _Cell(Markup(str(low) if low == high else f"{low}–{high}"), entry.row.rank)


def _model(entry: Entry) -> _Cell:
    summary = entry.summary
    name = Markup("<bdi>{}</bdi>").format(plain(summary.model))
    html = name if entry.href is None else Markup('<a href="{}">{}</a>').format(entry.href, name)
    if summary.stochastic:
        html += Markup(' <span class="tag">stochastic</span>')
    if entry.remark:
        html += Markup(' <span class="tag" title="{}">{}</span>').format(_REMARKS[entry.remark], entry.remark)
    if not summary.complete:
        missing = "; ".join(summary.missing)
        html += Markup(' <span class="tag warn">incomplete</span><small title="{}">not ranked: {}</small>').format(
            plain(missing, 1000), plain(missing, 90)
        )
    return _Cell(html, summary.model)


def _accuracy(summary: Summary, interval: Interval | None) -> _Cell | None:
    return None if interval is None else _plain_accuracy(interval, summary.n)


@lru_cache(maxsize=65536)
def _plain_accuracy(interval: Interval, n: int) -> _Cell:
    return _Cell(
        Markup(f"<b>{percent(interval.value, n)}</b><small>{span_text(interval, n)}</small>"), round(interval.value, 6)
    )


@lru_cache(maxsize=65536)
def _tinted(interval: Interval, n: int) -> _Cell:
    number = f"<b>{percent(interval.value, n)}</b><small>{span_text(interval, n)}</small>"
    html = f'<span class="t{round(10 * interval.value)}">{number}</span>'
    return _Cell(Markup(html), round(interval.value, 6))


def _claimed(entry: Entry) -> _Cell | None:
    claim = entry.claim
    if claim is None:
        return None
    return _Cell(Markup("<b>{}</b><small>{}, {}</small>").format(claim.text, claim.paper, symbols(claim.attack)), claim.percent)


def _overestimate(entry: Entry) -> _Cell | None:
    gap = entry.verdict.overestimate if entry.verdict else None
    if gap is None:
        return None
    return _Cell(
        Markup("<b>{}</b><small>{} to {}</small>").format(*map(points_text, (gap.value, gap.low, gap.high))),
        round(gap.value, 6),
    )


def _verdict(entry: Entry) -> _Cell | None:
    if entry.verdict is None:
        return None
    word = entry.verdict.conclusion
    html = Markup('<span class="tag {0}">{0}</span>').format(word)
    if entry.verdict.bounds is not None:
        html += Markup(" <small>{}</small>").format(entry.verdict.bounds)
    return _Cell(html if entry.href is None else Markup('<a href="{}#evidence">{}</a>').format(entry.href, html), word)


def _lowest(entry: Entry) -> _Cell | None:
    lowest = entry.summary.a_rob_as_in_paper
    return None if lowest is None or entry.summary.cascade else _plain_accuracy(lowest, entry.summary.n)


def _predictions(entry: Entry) -> _Cell:
    word = "stochastic" if entry.summary.stochastic else "deterministic"
    return _Cell(Markup(word), word)


def _parameters(entry: Entry) -> _Cell | None:
    number = entry.facts.parameters
    return None if number is None else _Cell(Markup(count_text(number)), number)


def _paper(entry: Entry) -> _Cell | None:
    paper = entry.facts.paper
    if paper is None:
        return None
    shown_as = Markup("{}<small>{}</small>").format(
        plain(entry.facts.paper_key, 40), plain(" ".join([*([paper.venue] if paper.venue else []), str(paper.year)]), 40)
    )
    html = shown_as if paper.url is None else Markup('<a href="{}" rel="noreferrer">{}</a>').format(paper.url, shown_as)
    return _Cell(html, entry.facts.paper_key)


def _evaluated(entry: Entry) -> _Cell:
    created = entry.summary.evaluation.created
    return _Cell(Markup("{}<small>n = {}</small>").format(plain(created[:10]), entry.summary.n), created)


def _passes(entry: Entry) -> _Cell:
    return _Cell(Markup(count_text(entry.summary.used)), round(entry.summary.used, 3))


def _time(entry: Entry) -> _Cell:
    seconds = sum(attack.seconds for attack in entry.summary.attacks)
    return _Cell(Markup(duration_text(seconds)), round(seconds, 3))


def _text(text: str) -> _Cell | None:
    return _Cell(escape(plain(text, 80)), text) if text else None


def _chart(ranked: Sequence[Entry]) -> Markup:
    """Return robust against clean accuracy, a point for each model."""
    known = [(entry.summary, entry.summary.a_std, entry.summary.a_rob) for entry in ranked]
    points = [(summary, std, rob) for summary, std, rob in known if std is not None and rob is not None]
    few = len(points) <= _NAMED
    names = [
        short(summary.model) if position < 3 or (few and rob.value > 0.03) else ""
        for position, (summary, _, rob) in enumerate(points)
    ]
    y, low, high = (100 * np.array([getattr(rob, end) for _, _, rob in points]) for end in ("value", "low", "high"))
    x = 100 * np.array([std.value for _, std, _ in points])
    line = Line("", x, y, 0, low, high, kind="points", labels=tuple(names))
    panel = Panel("", r"$A_\mathrm{std}$, %", r"$A_\mathrm{rob}$, %", (line,))
    title = f"Robust against clean accuracy of {len(points)} models"
    return chart_image(panels_picture(title, [panel], columns=1, wide=True))


def _whole(text: str) -> Markup:
    return escape(plain(text, 2000))
