"""Tables as text: Markdown for a repository, CSV for spreadsheets."""

from collections.abc import Sequence

from kwbench.formatting import count_text, duration_text, interval_text, markdown, spreadsheet
from kwbench.record.summary import Summary
from kwbench.report.leaderboard import Board, Row, shown
from kwbench.report.terminal import certified_heading, notes, verdicts
from kwbench.verdict import Verdict
from kwbench.verdict.frame import VERDICTS, with_verdicts

BOUND = (
    "A_rob is an upper bound found by these attacks; stronger attacks can only lower it. "
    "Intervals are 95 % and cover the choice of the images, not the strength of the attacks."
)


def markdown_page(tables: Sequence[Board]) -> str:
    """Return the boards as a Markdown page."""
    parts = ["# Robust accuracy\n", f"{BOUND}\n"]
    if not tables:
        parts.append("The record is empty.\n")
    for board in tables:
        key = board.key
        parts.append(f"## {markdown(key.dataset)}, {markdown(board.threat)}, suite {markdown(key.suite)}\n")
        parts.append(f"Percent of n = {key.n} samples, with 95 % intervals. Digest of the data: {markdown(key.data[:12])}.\n")
        columns, rows = _table(board)
        lines = [columns, [":--" if name == "Model" else "--:" for name in columns], *rows]
        parts.append("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n")
        bullets = [
            f"- Incomplete, not ranked: {markdown(row.summary.model)}: {markdown('; '.join(row.summary.missing))}"
            for row in board.rows
            if not row.summary.complete
        ]
        for row, verdict in zip(board.rows, verdicts(board), strict=False):
            if verdict is not None:
                bullets.append(f"- {markdown(row.summary.model)}: {markdown(verdict.sentence(), 2000)}")
        bullets += [f"- {markdown(note)}" for note in notes(board)[1:]]
        tied = [markdown(row.summary.model) for row in board.rows if row.tied]
        if tied:
            bullets.append(f"- No difference by a paired test at 5 % (Holm): {', '.join(tied)}")
        if bullets:
            parts.append("\n".join(bullets) + "\n")
    return "\n".join(parts)


def csv_table(summaries: Sequence[Summary]) -> str:
    """Return a row for each evaluation and attack. Text that a spreadsheet would run as a formula is quoted."""
    import pandas as pd  # slow to import, and Markdown needs none of it

    frame = with_verdicts(summaries)
    if not frame["verdict"].any():
        frame = frame.drop(columns=VERDICTS)
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].map(lambda value: spreadsheet(value) if isinstance(value, str) else value)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _table(board: Board) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of a board as the papers print it: model, A_std, a column for each attack, A_rob."""
    n = board.key.n
    row_verdicts = verdicts(board)
    certified = [heading.capitalize() for heading in certified_heading(board)]

    def cells(position: int, row: Row) -> list[str]:
        summary = row.summary
        model = markdown(summary.model) + (" (stochastic)" if summary.stochastic else "")
        texts = [model if summary.complete else f"{model} (incomplete)", interval_text(summary.a_std, n)]
        texts += [interval_text(shown(row, label, board.key.cascade), n) for label in board.labels]
        texts += ["not certified" if summary.a_certified is None else interval_text(summary.a_certified, n) for _ in certified]
        texts.append(interval_text(summary.a_rob, n))
        texts += ["–" if verdict is None else _words(verdict) for verdict in row_verdicts[position : position + 1]]
        texts.append(count_text(sum(attack.forwards for attack in summary.attacks)))
        texts.append(count_text(sum(attack.backwards for attack in summary.attacks)))
        texts.append(duration_text(sum(attack.seconds for attack in summary.attacks)))
        return texts

    columns = ["Model", "A\\_std", *map(markdown, board.labels), *certified, "A\\_rob", *(["Verdict"] if row_verdicts else [])]
    columns += ["forwards", "backwards", "time"]
    return columns, [cells(position, row) for position, row in enumerate(board.rows)]


def _words(verdict: Verdict) -> str:
    return verdict.conclusion if verdict.bounds is None else f"{verdict.conclusion}, {verdict.bounds}"
