"""Claimed and measured accuracies, cell by cell: for the terminal, as Markdown, and as one self-contained HTML page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from rich import box
from rich.console import ConsoleRenderable
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from kwbench.claims import PAPERS, ClaimComparison, Remark
from kwbench.claims.measurements import MeasuredAccuracy
from kwbench.formatting import interval_text, markdown, plain
from kwbench.record.summary import Summary
from kwbench.report.html.grouping import run_file
from kwbench.report.page import rendered
from kwbench.verdict import verdict_on_record

_LONG = 1000

LEAD = (
    "Each cell of the papers' tables beside two measurements: the accuracy under the paper's protocol, and the robust accuracy "
    "of the same network under the suite strong. A number after a label is another reading of the paper's protocol. Percent, "
    "with 95 % intervals."
)
CAUTION = (
    "If our network is not the paper's, the difference between a claim and our number is also a difference between networks. "
    "The difference between our two numbers is what the paper's protocol overestimates. No paper describes its training "
    "completely: Nesterov momentum and Kaiming initialisation are our choice throughout, and so are weight decay "
    "and half precision unless a recipe names others."
)
STATUSES = {
    "run": "measured and on record",
    "runnable": "not on record; the listed commands measure it on the named hardware",
    "not comparable": "no measurement could be compared with it",
}

# The section at the end of the page.
WITHOUT_CLAIM = "Other networks on the same data sets, without a claim"
# Its columns, with the class of their cells: numbers are aligned to the right.
_COLUMNS = {"Network": "", "Suite": "", "Attacked": "", "Images": "", "A_std": "num", "A_rob": "num", "Verdict": ""}


@dataclass(frozen=True, slots=True)
class Line:
    """One cell of a paper's table beside its measurements. `differs` and `recipe` are marks of the group's notes."""

    training: str
    activation: str
    attack: str
    claimed: str
    quoted: str
    remarks: tuple[str, ...]
    measured: tuple[tuple[str, str], ...]
    images: str
    strong: str | None
    verdict: str
    model: str
    run: str
    differs: str
    status: str
    recipe: str
    why_not: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table as the paper prints it: a cell for each attack, and what most of its measured cells share.

    `run` names the page of the evaluation under `strong`, else of one under the paper's protocol; it is empty without any.
    """

    activation: str
    cells: tuple[Line | None, ...]
    model: str
    run: str
    images: str
    verdict: str
    differs: str


# The rows of each kind of training.
Rows = dict[str, list[Row]]


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of a table about one architecture on one data set, with notes on our networks and the commands to run.

    `measured` and `others` are the rows with and without a measured cell, as the paper prints them, below `attacks`.
    """

    title: str
    lines: tuple[Line, ...]
    attacks: tuple[str, ...]
    measured: Rows
    others: Rows
    differences: tuple[tuple[str, str], ...]
    recipes: tuple[tuple[str, str, tuple[str, ...]], ...]


def claims_markdown(
    comparisons: Sequence[ClaimComparison], remarks: Sequence[Remark], unclaimed: Sequence[Summary] = ()
) -> str:
    """Return the comparisons, the remarks of the lint and the evaluations without a claim as a Markdown page."""
    parts = ["# Claimed and measured\n", f"{LEAD} {CAUTION}\n", _table(_counts(comparisons)) + "\n"]
    parts.append("\n".join(f"- {status}: {meaning}" for status, meaning in STATUSES.items()) + "\n")
    parts.append("## Impossible claims and ineffective protocols\n")
    lines = [["Rule", "Kind", "Cells", "Problem"], [":--", ":--", "--:", ":--"]]
    lines += [
        [markdown(remark.rule), remark.kind, str(len(remark.claims) or "–"), markdown(_remark_text(remark), _LONG)]
        for remark in remarks
    ]
    parts.append(_table(lines) + "\n")
    for paper, reference in PAPERS.items():
        groups = _groups([comparison for comparison in comparisons if comparison.claim.paper == paper])
        if groups:
            parts.append(f"## {paper}\n\n{markdown(reference, _LONG)}\n")
            parts += [_markdown_group(group) for group in groups]
    if unclaimed:
        head = [[markdown(name) for name in _COLUMNS], ["--:" if kind else ":--" for kind in _COLUMNS.values()]]
        body = [[text if _COLUMNS[name] else markdown(text) for name, text in row.items()] for row in _rows(unclaimed)]
        parts.append(f"## {WITHOUT_CLAIM}\n\n{_table([*head, *body])}\n")
    return "\n".join(parts)


def claims_html(
    comparisons: Sequence[ClaimComparison],
    remarks: Sequence[Remark],
    unclaimed: Sequence[Summary] = (),
    pages: Sequence[str] = (),
) -> str:
    """Return the same as one self-contained HTML page, which links to the other `pages` beside it."""
    papers = [
        (paper, _whole(reference), groups)
        for paper, reference in PAPERS.items()
        if (groups := _groups([comparison for comparison in comparisons if comparison.claim.paper == paper]))
    ]
    return rendered(
        "claims.html.j2",
        pages=pages,
        scripts=("claims.js",),
        lead=_whole(LEAD),
        caution=_whole(CAUTION),
        counts=_counts(comparisons),
        statuses=STATUSES,
        remarks=[(remark.rule, remark.kind, len(remark.claims), _whole(_remark_text(remark))) for remark in remarks],
        papers=papers,
        without_claim=WITHOUT_CLAIM,
        columns=_COLUMNS,
        unclaimed=list(zip(_rows(unclaimed), map(run_file, unclaimed), strict=True)),
        evaluations="index.html" in pages,
        whole=_whole,
    )


def _rows(unclaimed: Sequence[Summary]) -> list[dict[str, str]]:
    """A row for each evaluation, by column."""
    return [dict(zip(_COLUMNS, _cells(summary), strict=True)) for summary in unclaimed]


def _cells(summary: Summary) -> tuple[str, ...]:
    a_std, a_rob = ("–" if one is None else interval_text(one, summary.n) for one in (summary.a_std, summary.a_rob))
    verdict = verdict_on_record(summary)
    images = f"{summary.dataset}, {summary.n}"
    conclusion = "–" if verdict is None else verdict.conclusion
    return (summary.model, summary.evaluation.spec.suite, str(summary.threat), images, a_std, a_rob, conclusion)


def _whole(text: str) -> Markup:
    """Escape a text of kwbench, which may be longer than any name."""
    return escape(plain(text, _LONG))


def claims_table(comparisons: Sequence[ClaimComparison]) -> ConsoleRenderable:
    """Return the comparisons for the terminal: a line for each cell, and the number of cells of each status."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("paper, table", "network", "training", "activation", "attack", "claimed", "here", "strong", "status"):
        table.add_column(name, justify="right" if name in ("claimed", "here", "strong") else "left")
    previous = None
    for comparison in comparisons:
        claim, group = comparison.claim, comparison.claim.network[:4]
        if previous not in (None, group):
            table.add_section()
        heads = (f"{claim.paper}, {claim.table}", f"{claim.dataset} {claim.architecture}") if previous != group else ("", "")
        previous = group
        first = comparison.measured[:1]
        measured = "; ".join([*map(_text, first), *(f"{other.label} {_text(other)}" for other in comparison.measured[1:])])
        cells = (*heads, claim.training, claim.activation, claim.attack, claim.text, measured, _strong(comparison))
        table.add_row(*(Text(plain(cell)) for cell in (*cells, comparison.status)))
    counts = Counter[str](comparison.status for comparison in comparisons)
    return Lines(table, Text(", ".join(f"{counts[status]} {status}" for status in STATUSES)))


def _counts(comparisons: Sequence[ClaimComparison]) -> list[list[str]]:
    counts = Counter((comparison.claim.paper, comparison.status) for comparison in comparisons)
    lines = [["Paper", "cells", *STATUSES], [":--", *["--:"] * (1 + len(STATUSES))]]
    for paper in [*PAPERS, "all"]:
        by_status = [
            sum(n for (name, state), n in counts.items() if paper in (name, "all") and state == status) for status in STATUSES
        ]
        lines.append([paper, str(sum(by_status)), *map(str, by_status)])
    return lines


def _remark_text(remark: Remark) -> str:
    """The statement of a remark, with the cell or the papers that it is about."""
    if len(remark.claims) == 1:
        return f"{remark.claims[0].name}: {remark.statement}"
    return ": ".join([*dict.fromkeys(claim.paper for claim in remark.claims), remark.statement])


def _groups(comparisons: Sequence[ClaimComparison]) -> list[Group]:
    groups: dict[tuple[str, ...], list[ClaimComparison]] = {}
    for comparison in comparisons:
        claim = comparison.claim
        groups.setdefault((claim.table, claim.dataset, claim.architecture, claim.pretrained), []).append(comparison)
    return [_group(members) for members in groups.values()]


def _group(members: Sequence[ClaimComparison]) -> Group:
    differences: dict[str, str] = {}
    recipes: dict[tuple[str, tuple[str, ...]], str] = {}
    lines = []
    for comparison in members:
        claim, model = comparison.claim, comparison.model
        differs = [differences.setdefault(text, chr(ord("a") + len(differences))) for text in comparison.differs]
        recipe = ""
        if model:
            commands = tuple(command.replace(model, "NAME") for command in comparison.commands)
            recipe = recipes.setdefault((comparison.hardware, commands), str(len(recipes) + 1))
        lines.append(
            Line(
                training=claim.training,
                activation=claim.activation,
                attack=claim.attack + (f", {claim.threat}" if claim.threat is not None else f", {claim.norm}" * claim.attacked),
                claimed=claim.text,
                quoted=claim.quoted_from,
                remarks=comparison.remarks,
                measured=tuple((one.label, _text(one)) for one in comparison.measured),
                images=_images(comparison),
                strong=_strong(comparison) or None,
                verdict=comparison.verdict,
                model=model,
                run=_run(comparison),
                differs=", ".join(differs),
                status=comparison.status,
                recipe=recipe,
                why_not=comparison.mapping.why_not,
            )
        )
    first = members[0].claim
    table = f"Table {first.table}" if first.table.isdigit() else first.table
    pretrained = ", pre-trained" if first.pretrained != "no" else ""
    attacks = tuple(dict.fromkeys(line.attack for line in lines))
    rows = _rows_of(lines, attacks)
    return Group(
        title=f"{table}: {first.dataset}, {first.architecture}{pretrained}",
        lines=tuple(lines),
        attacks=attacks,
        measured=_by_training(rows, measured=True),
        others=_by_training(rows, measured=False),
        differences=tuple((mark, text) for text, mark in differences.items()),
        recipes=tuple((mark, hardware, commands) for (hardware, commands), mark in recipes.items()),
    )


def _rows_of(lines: Sequence[Line], attacks: Sequence[str]) -> list[tuple[str, Row]]:
    """Return a row for each network, after its training."""
    networks: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines:
        networks.setdefault((line.training, line.activation), {})[line.attack] = line
    rows = []
    for (training, activation), cells in networks.items():
        measured = [cell for cell in cells.values() if cell.status == "run"]
        shared = {name: _usual(getattr(cell, name) for cell in measured) for name in ("run", "images", "verdict", "differs")}
        model = next(filter(None, (cell.model for cell in cells.values())), "")
        rows.append((training, Row(activation, tuple(map(cells.get, attacks)), model, **shared)))
    return rows


def _usual(values: Iterable[str]) -> str:
    """Return the most frequent of the texts that are not empty; an empty one if there is none."""
    counts = Counter(filter(None, values))
    return counts.most_common(1)[0][0] if counts else ""


def _by_training(rows: Sequence[tuple[str, Row]], *, measured: bool) -> Rows:
    """Return the rows with or without a measured cell, by their training."""
    chosen: Rows = {}
    for training, row in rows:
        if any(cell is not None and cell.status == "run" for cell in row.cells) == measured:
            chosen.setdefault(training, []).append(row)
    return chosen


def _run(comparison: ClaimComparison) -> str:
    """The page of the evaluation under `strong`, else of the first measurement; empty without any."""
    evaluations = [*([comparison.strong] if comparison.strong is not None else []), *comparison.measured]
    return run_file(evaluations[0].summary) if evaluations else ""


def _images(comparison: ClaimComparison) -> str:
    """The images of the measurement: data set and number; empty without one."""
    if not comparison.measured:
        return ""
    summary = comparison.measured[0].summary
    return f"{summary.dataset}, {summary.n}"


def _text(measured: MeasuredAccuracy) -> str:
    return interval_text(measured.accuracy, measured.summary.n)


def _strong(comparison: ClaimComparison) -> str:
    """A_rob under the suite `strong`, with the number of images if that differs; empty if it has not run."""
    if comparison.strong is None:
        return ""
    n = comparison.strong.summary.n
    return _text(comparison.strong) + (f", of {n} images" if n != comparison.measured[0].summary.n else "")


def _markdown_group(group: Group) -> str:
    head = ["Training", "Activation", "Attack", "Claimed", "Here, the paper's protocol", "Here, strong", "Images", "Network"]
    lines = [[*head, "Status"], [":--", ":--", ":--", "--:", "--:", "--:", ":--", ":--", ":--"]]
    lines += [_markdown_line(line) for line in group.lines]
    notes = [f"- {mark}: {markdown(text, _LONG)}" for mark, text in group.differences]
    for mark, hardware, commands in group.recipes:
        notes.append(f"- [{mark}] on {hardware}: {', then '.join(f'`{command}`' for command in commands)}")
    return "\n".join([f"### {markdown(group.title)}\n", _table(lines), "", *notes, ""])


def _markdown_line(line: Line) -> list[str]:
    first, *others = line.measured or (("", "–"),)
    measured = first[1] + "".join(f"; {markdown(label)}: {text}" for label, text in others)
    strong = "–" if line.strong is None else line.strong + (f", {line.verdict}" if line.verdict else "")
    claimed = line.claimed + (f" (quoted: {markdown(line.quoted)})" if line.quoted else "")
    claimed += f" **{', '.join(line.remarks)}**" if line.remarks else ""
    network = f"{markdown(line.model)}{f' ({line.differs})' if line.differs else ''}" if line.model else "–"
    status = (
        line.status
        + (f" [{line.recipe}]" if line.recipe else "")
        + (f": {markdown(line.why_not, _LONG)}" if line.why_not else "")
    )
    names = [markdown(name) for name in (line.training, line.activation, line.attack)]
    return [*names, claimed, measured, strong, markdown(line.images) or "–", network, status]


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
