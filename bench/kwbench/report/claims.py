"""Claimed beside measured, cell by cell: for the terminal, as Markdown, and as one self-contained HTML page."""

from collections import Counter
from collections.abc import Sequence
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
from kwbench.report.page import rendered
from kwbench.verdict import verdict_on_record

_LONG = 1000

LEAD = (
    "Each cell of the papers' tables, the number that its protocol leaves here, and what the strong suite leaves on the same "
    "network. A number behind a label is another reading of the paper, as its suite has it. Percent, with 95 % intervals."
)
CAUTION = (
    "Where our network is not the paper's, the distance between a claim and our number mixes their network with ours. What a "
    "protocol overestimates is the distance between our two numbers. Of training no paper says all: Nesterov's momentum and "
    "Kaiming's initialisation are ours throughout, and weight decay and half precision but where a recipe names others."
)
STATUSES = {
    "run": "measured, and on record",
    "runnable": "not on record; the named commands measure it on the named hardware",
    "not comparable": "nothing measured here could be compared with it",
}

# At the end of the page; figures are aligned to the right.
NO_CELL = "Networks on the same data sets for which no cell stands"
_COLUMNS = {"Network": "", "Suite": "", "Attacked": "", "Images": "", "A_std": "num", "A_rob": "num", "Verdict": ""}


@dataclass(frozen=True, slots=True)
class Line:
    """One cell of a paper's table. `differs` and `how` are marks of the group's notes."""

    training: str
    activation: str
    attack: str
    claimed: str
    quoted: str
    remarks: tuple[str, ...]
    here: tuple[tuple[str, str], ...]
    images: str
    strong: str | None
    verdict: str
    model: str
    differs: str
    status: str
    how: str
    why_not: str


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of a table about one architecture on one data set, and what is to be said of them."""

    title: str
    lines: tuple[Line, ...]
    differences: tuple[tuple[str, str], ...]
    recipes: tuple[tuple[str, str, tuple[str, ...]], ...]


def claims_markdown(found: Sequence[ClaimComparison], remarks: Sequence[Remark], unclaimed: Sequence[Summary] = ()) -> str:
    """The comparisons as a Markdown page, and what else has been measured of our networks."""
    parts = ["# Claimed and measured\n", f"{LEAD} {CAUTION}\n", _table(_counts(found)) + "\n"]
    parts.append("\n".join(f"- {status}: {meaning}" for status, meaning in STATUSES.items()) + "\n")
    parts.append("## What cannot be true, and what could not have worked\n")
    lines = [["Rule", "", "Cells", "What is wrong"], [":--", ":--", "--:", ":--"]]
    lines += [[markdown(each.rule), each.kind, str(len(each.claims) or "–"), markdown(_said(each), _LONG)] for each in remarks]
    parts.append(_table(lines) + "\n")
    for paper, reference in PAPERS.items():
        groups = _groups([each for each in found if each.claim.paper == paper])
        if groups:
            parts.append(f"## {paper}\n\n{markdown(reference, _LONG)}\n")
            parts += [_markdown_group(group) for group in groups]
    if unclaimed:
        head = [[markdown(name) for name in _COLUMNS], ["--:" if kind else ":--" for kind in _COLUMNS.values()]]
        body = [[text if _COLUMNS[name] else markdown(text) for name, text in row.items()] for row in _rows(unclaimed)]
        parts.append(f"## {NO_CELL}\n\n{_table([*head, *body])}\n")
    return "\n".join(parts)


def claims_html(found: Sequence[ClaimComparison], remarks: Sequence[Remark], unclaimed: Sequence[Summary] = ()) -> str:
    """The same as one self-contained HTML page."""
    papers = [
        (paper, _whole(reference), groups)
        for paper, reference in PAPERS.items()
        if (groups := _groups([each for each in found if each.claim.paper == paper]))
    ]
    return rendered(
        "claims.html.j2",
        lead=_whole(LEAD),
        caution=_whole(CAUTION),
        counts=_counts(found),
        statuses=STATUSES,
        remarks=[(each.rule, each.kind, len(each.claims), _whole(_said(each))) for each in remarks],
        papers=papers,
        no_cell=NO_CELL,
        columns=_COLUMNS,
        unclaimed=_rows(unclaimed),
        whole=_whole,
    )


def _rows(unclaimed: Sequence[Summary]) -> list[dict[str, str]]:
    """A row for each evaluation, by column."""
    return [dict(zip(_COLUMNS, _words(each), strict=True)) for each in unclaimed]


def _words(each: Summary) -> tuple[str, ...]:
    figures = [interval_text(one, each.n) if one is not None else "–" for one in (each.a_std, each.a_rob)]
    found = verdict_on_record(each)
    images = f"{each.dataset}, {each.n}"
    return (
        each.model,
        each.evaluation.spec.suite,
        str(each.threat),
        images,
        *figures,
        "–" if found is None else found.conclusion,
    )


def _whole(text: str) -> Markup:
    """Text of ours, which may be longer than any name."""
    return escape(plain(text, _LONG))


def claims_table(found: Sequence[ClaimComparison]) -> ConsoleRenderable:
    """The comparisons for the terminal, a line for each cell, and how many there are of each status."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("paper, table", "network", "training", "activation", "attack", "claimed", "here", "strong", "status"):
        table.add_column(name, justify="right" if name in ("claimed", "here", "strong") else "left")
    before = None
    for each in found:
        claim, group = each.claim, each.claim.network[:4]
        if before not in (None, group):
            table.add_section()
        heads = (f"{claim.paper}, {claim.table}", f"{claim.dataset} {claim.architecture}") if before != group else ("", "")
        before = group
        here = "; ".join(_text(one) if one is each.measured[0] else f"{one.label} {_text(one)}" for one in each.measured)
        words = (*heads, claim.training, claim.activation, claim.attack, claim.text, here, _strong(each), each.status)
        table.add_row(*(Text(plain(word)) for word in words))
    counts = Counter[str](each.status for each in found)
    return Lines(table, Text(", ".join(f"{counts[status]} {status}" for status in STATUSES)))


def _counts(found: Sequence[ClaimComparison]) -> list[list[str]]:
    counts = Counter((each.claim.paper, each.status) for each in found)
    lines = [["Paper", "cells", *STATUSES], [":--", *["--:"] * (1 + len(STATUSES))]]
    for paper in [*PAPERS, "all"]:
        each = [
            sum(n for (its, state), n in counts.items() if paper in (its, "all") and state == status) for status in STATUSES
        ]
        lines.append([paper, str(sum(each)), *map(str, each)])
    return lines


def _said(remark: Remark) -> str:
    """What a remark says, and of which cell or paper."""
    if len(remark.claims) == 1:
        return f"{remark.claims[0].name}: {remark.statement}"
    return ": ".join([*dict.fromkeys(each.paper for each in remark.claims), remark.statement])


def _groups(found: Sequence[ClaimComparison]) -> list[Group]:
    gathered: dict[tuple[str, ...], list[ClaimComparison]] = {}
    for each in found:
        claim = each.claim
        gathered.setdefault((claim.table, claim.dataset, claim.architecture, claim.pretrained), []).append(each)
    return [_group(members) for members in gathered.values()]


def _group(members: Sequence[ClaimComparison]) -> Group:
    differences: dict[str, str] = {}
    recipes: dict[tuple[str, tuple[str, ...]], str] = {}
    lines = []
    for each in members:
        claim, mapping, model = each.claim, each.mapping, each.model
        differs = [differences.setdefault(text, chr(ord("a") + len(differences))) for text in each.differs]
        how = ""
        if model:
            commands = tuple(command.replace(model, "NAME") for command in each.commands)
            how = recipes.setdefault((each.hardware, commands), str(len(recipes) + 1))
        lines.append(
            Line(
                training=claim.training,
                activation=claim.activation,
                attack=claim.attack + (f", {claim.threat}" if claim.threat is not None else f", {claim.norm}" * claim.attacked),
                claimed=claim.text,
                quoted=claim.quoted_from,
                remarks=each.remarks,
                here=tuple((one.label, _text(one)) for one in each.measured),
                images="" if not each.measured else f"{each.measured[0].summary.dataset}, {each.measured[0].summary.n}",
                strong=_strong(each) or None,
                verdict=each.verdict,
                model=model,
                differs=", ".join(differs),
                status=each.status,
                how=how,
                why_not=mapping.why_not,
            )
        )
    first = members[0].claim
    table = f"Table {first.table}" if first.table.isdigit() else first.table
    pretrained = ", pre-trained" if first.pretrained != "no" else ""
    return Group(
        title=f"{table}: {first.dataset}, {first.architecture}{pretrained}",
        lines=tuple(lines),
        differences=tuple((mark, text) for text, mark in differences.items()),
        recipes=tuple((mark, hardware, commands) for (hardware, commands), mark in recipes.items()),
    )


def _text(each: MeasuredAccuracy) -> str:
    return interval_text(each.accuracy, each.summary.n)


def _strong(each: ClaimComparison) -> str:
    """What strong leaves, with the number of images where that is another; empty where it has not run."""
    if each.strong is None:
        return ""
    n = each.strong.summary.n
    return _text(each.strong) + (f", of {n} images" if n != each.measured[0].summary.n else "")


def _markdown_group(group: Group) -> str:
    head = ["Training", "Activation", "Attack", "Claimed", "Here, the paper's protocol", "Here, strong", "Images", "Network"]
    lines = [[*head, "Status"], [":--", ":--", ":--", "--:", "--:", "--:", ":--", ":--", ":--"]]
    lines += [_markdown_line(line) for line in group.lines]
    notes = [f"- {mark}: {markdown(text, _LONG)}" for mark, text in group.differences]
    for mark, hardware, commands in group.recipes:
        notes.append(f"- [{mark}] on {hardware}: {', then '.join(f'`{command}`' for command in commands)}")
    return "\n".join([f"### {markdown(group.title)}\n", _table(lines), "", *notes, ""])


def _markdown_line(line: Line) -> list[str]:
    first, *others = line.here or (("", "–"),)
    here = first[1] + "".join(f"; {markdown(label)}: {text}" for label, text in others)
    strong = "–" if line.strong is None else line.strong + (f", {line.verdict}" if line.verdict else "")
    claimed = line.claimed + (f" (quoted: {markdown(line.quoted)})" if line.quoted else "")
    claimed += f" **{', '.join(line.remarks)}**" if line.remarks else ""
    network = f"{markdown(line.model)}{f' ({line.differs})' if line.differs else ''}" if line.model else "–"
    status = (
        line.status + (f" [{line.how}]" if line.how else "") + (f": {markdown(line.why_not, _LONG)}" if line.why_not else "")
    )
    words = [markdown(each) for each in (line.training, line.activation, line.attack)]
    return [*words, claimed, here, strong, markdown(line.images) or "–", network, status]


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
