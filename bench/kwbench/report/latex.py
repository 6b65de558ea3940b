"""Leaderboards as LaTeX tables that fit their columns: best first, split where they are too wide or too long."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from kwbench.formatting import latex, percent, plain
from kwbench.report.leaderboard import Board, Row, shown
from kwbench.report.terminal import certified_heading, verdicts
from kwbench.statistics import Interval

# The widths of a column of a two-column page, and of a one-column page, of the class `article`, in points; the narrower of the
# pages that a wide table may stand on.
_NARROW, _WIDE = 225.0, 340.0

# Estimated width of a character in 8 and in 5 points, space between columns, and the largest width of a name, all in points.
_LETTER, _SMALL, _GAP, _NAME = 4.6, 3.1, 6.0, 104.0

# Lines of a heading have about so many characters.
_HEADING = 10

_A_ROB = "$A_\\mathrm{rob}$"

# The height of a page left by a caption, and of a heading with its rules, in points.
_HEIGHT, _HEAD_HEIGHT = 420.0, 45.0


_PREAMBLE = r"""% Needs \usepackage{booktabs}. Names in other alphabets than the Latin one need LuaLaTeX or XeLaTeX.
\providecommand{\kwinterval}[2]{\begin{tabular}[t]{@{}r@{}}#1\\[-2pt]{\tiny #2}\end{tabular}}
"""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: the lines of its heading, its cells, and its estimated width in points."""

    heading: str
    cells: tuple[str, ...]
    width: float


def latex_tables(boards: Sequence[Board], bound: str) -> str:
    """Return the boards as LaTeX tables for the package booktabs.

    Each fits a page of one column and a page of two, in 8 points. `bound` ends the captions: what an accuracy means. The best
    A_rob is bold where it differs significantly from all others of its table.
    """
    parts = [_PREAMBLE]
    used: dict[str, int] = {}
    for board in boards:
        label = re.sub(r"[^a-z0-9.]+", "-", f"{board.key.dataset} {board.threat} {board.key.suite}".lower()).strip("-")[:60]
        used[label] = used.get(label, 0) + 1
        label = label if used[label] == 1 else f"{label}-{used[label]}"
        for number, (kind, tabulars) in enumerate(_floats(board)):
            parts.append(_float(board, kind, tabulars, label, number, bound))
    return "\n".join(parts)


def _floats(board: Board) -> list[tuple[str, list[list[str]]]]:
    """Return the tables of a board, each with its environment and the lines of its tabulars, which are one below the other."""
    made: list[tuple[str, list[list[str]]]] = []
    for positions, height in _pages(board):
        names, columns = _names(board, positions), _columns(board, positions)
        total = names.width + sum(column.width + _GAP for column in columns)
        kind = "table" if total <= _NARROW else "table*"
        tabulars = [_tabular(names, group) for group in _groups(names.width, columns)]
        together = max(1, int(_HEIGHT // height))
        made += [(kind, tabulars[first : first + together]) for first in range(0, len(tabulars), together)]
    return made


def _pages(board: Board) -> list[tuple[range, float]]:
    """Return the rows that stand together, and their estimated height in points."""
    pages: list[tuple[range, float]] = []
    start, height = 0, _HEAD_HEIGHT
    for position, row in enumerate(board.rows):
        needed = _row_height(row.summary.model)
        if height + needed > _HEIGHT and position > start:
            pages.append((range(start, position), height))
            start, height = position, _HEAD_HEIGHT
        height += needed
    return [*pages, (range(start, len(board.rows)), height)]


def _row_height(model: str) -> float:
    # A line that is broken at a sign is not full.
    lines = -(-1.25 * _LETTER * len(model) // _NAME)
    return max(19.0, 9.7 * lines + 2)


def _float(board: Board, kind: str, tabulars: Sequence[Sequence[str]], label: str, number: int, bound: str) -> str:
    """Return one table. `number` counts the tables of the board from 0."""
    key = board.key
    continued = " (continued)" if number else ""
    bold = " Bold: significantly better than all others (paired tests, 5\\,\\%, Holm)." if _is_clear(board) else ""
    meaning = latex(bound).replace(r"A\_rob", _A_ROB)
    cascade = " Cascade: the column of an attack is the accuracy after it and all before it." if key.cascade else ""
    caption = (
        f"Accuracy in percent on {latex(key.dataset)}, {latex(board.threat)}, suite {latex(key.suite)}, $n = {key.n}$, with "
        f"95\\,\\% intervals{continued}. {meaning}{bold}{cascade}"
    )
    lines = [
        f"\\begin{{{kind}}}[t]",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\\setlength{\\belowcaptionskip}{4pt}",
        f"\\caption{{{caption}}}",
        f"\\label{{tab:{label}{-number - 1 if number else ''}}}",
    ]
    for part, tabular in enumerate(tabulars):
        lines += [*(["\\par\\medskip"] if part else []), *tabular]
    return "\n".join([*lines, f"\\end{{{kind}}}", ""])


def _tabular(names: _Column, columns: Sequence[_Column]) -> list[str]:
    rows = zip(names.cells, *(column.cells for column in columns), strict=True)
    return [
        f"\\begin{{tabular}}{{@{{}}p{{{names.width:.0f}pt}}{'r' * len(columns)}@{{}}}}",
        "\\toprule",
        " & ".join([names.heading, *(column.heading for column in columns)]) + r" \\",
        "\\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]


def _groups(name: float, columns: Sequence[_Column]) -> list[list[_Column]]:
    """Split columns into groups that fit beside the names of the models, in their order and of about the same width."""
    room = _WIDE - name
    total = sum(column.width + _GAP for column in columns)
    aim = total / -(-total // room)
    groups: list[list[_Column]] = [[]]
    width = 0.0
    for column in columns:
        needed = column.width + _GAP
        if groups[-1] and (width + needed > room or width >= aim):
            groups.append([])
            width = 0.0
        groups[-1].append(column)
        width += needed
    return groups


def _names(board: Board, positions: range) -> _Column:
    cells, widest = [], _LETTER * len("Model")
    for position in positions:
        summary = board.rows[position].summary
        model = plain(summary.model.removeprefix(f"{board.key.dataset}/"), 100)
        notes = [*(["stochastic"] if summary.stochastic else []), *([] if summary.complete else ["incomplete"])]
        text = f"{model} ({', '.join(notes)})" if notes else model
        cells.append(f"\\raggedright {breakable(text)}")
        widest = max(widest, _LETTER * len(text))
    return _Column("Model", tuple(cells), min(widest, _NAME))


def _columns(board: Board, positions: range) -> list[_Column]:
    n = board.key.n
    rows = [board.rows[position] for position in positions]
    best = board.rows[0] if _is_clear(board) else None

    def accuracies(heading: str, width: float, intervals: Sequence[Interval | None], bold: Row | None = None) -> _Column:
        cells = tuple(_accuracy(interval, n, row is bold) for interval, row in zip(intervals, rows, strict=True))
        digits = len(percent(1.0, n))
        return _Column(heading, cells, max(width, _SMALL * (2 * digits + 1)))

    columns = [accuracies("$A_\\mathrm{std}$", 5 * _LETTER, [row.summary.a_std for row in rows])]
    for label in board.labels:
        heading, width = _heading(label)
        columns.append(accuracies(heading, width, [shown(row, label, board.key.cascade) for row in rows]))
    for name in certified_heading(board):
        heading, width = _heading(name)
        columns.append(accuracies(heading, width, [row.summary.a_certified for row in rows]))
    columns.append(accuracies(_A_ROB, 5 * _LETTER, [row.summary.a_rob for row in rows], best))
    found = verdicts(board)
    if found:
        texts = [verdict.conclusion if (verdict := found[position]) else "--" for position in positions]
        columns.append(_Column("Verdict", tuple(texts), _LETTER * max(map(len, ["Verdict", *texts]))))
    return columns


def _accuracy(interval: Interval | None, n: int, bold: bool) -> str:
    """Return an accuracy above its interval in small figures."""
    if interval is None:
        return "--"
    value = percent(interval.value, n)
    span = f"{percent(interval.low, n)}--{percent(interval.high, n)}"
    value = f"\\textbf{{{value}}}" if bold else value
    return f"\\kwinterval{{{value}}}{{{span}}}"


def _heading(name: str) -> tuple[str, float]:
    """Return a heading in short lines, and its width."""
    lines = [""]
    for word in re.findall(r"[^-_ ]+[-_ ]?|[-_ ]", plain(name, 60)):
        for piece in (word[start : start + 14] for start in range(0, len(word), 14)):
            if lines[-1] and len(lines[-1]) + len(piece) > _HEADING:
                lines.append("")
            lines[-1] += piece
    stacked = "\\\\".join(latex(line.strip()) for line in lines)
    return f"\\shortstack[r]{{{stacked}}}", _LETTER * max(map(len, lines))


def breakable(text: str) -> str:
    """Return text for LaTeX that may be broken after each sign but a decimal point, and every ten letters of a long word."""
    pieces = re.findall(r"\(?[^\W_]{1,10}(?:\.\d{1,2})?[^\w\s(]?|.", text)
    return "\\allowbreak{}".join(latex(piece) for piece in pieces).replace("\\allowbreak{} ", " ")


def _is_clear(board: Board) -> bool:
    """Return whether the first row is significantly better than all others, of which there is one at least."""
    ranked = [row for row in board.rows if row.rank is not None]
    return len(ranked) > 1 and not any(row.tied for row in islice(ranked, 1, None))
