"""Tables as text: Markdown for a repository, CSV for spreadsheets, LaTeX for papers."""

from collections.abc import Callable, Sequence

import pandas as pd

from kwbench.formatting import count_text, duration_text, interval_text, latex, markdown, percent, spreadsheet
from kwbench.record.results import to_frame
from kwbench.record.summary import Summary
from kwbench.report.leaderboard import Board, Row, shown
from kwbench.report.terminal import notes, verdicts
from kwbench.statistics import Interval
from kwbench.verdict import verdict_on_record

BOUND = (
    "A_rob is an upper bound found by these attacks; stronger attacks can only lower it. "
    "Intervals are 95 % and cover the choice of the images, not the strength of the attacks."
)


def markdown_page(tables: Sequence[Board]) -> str:
    """The boards as a Markdown page."""
    parts = ["# Robust accuracy\n", f"{BOUND}\n"]
    if not tables:
        parts.append("Nothing is on record yet.\n")
    for board in tables:
        key = board.key
        parts.append(f"## {markdown(key.dataset)}, {markdown(board.threat)}, suite {markdown(key.suite)}\n")
        parts.append(f"Percent of n = {key.n} samples, with 95 % intervals. Data {markdown(key.data[:12])}.\n")
        frame = _frame(board, markdown, interval_text)
        lines = [
            list(frame.columns),
            [":--" if name == "Model" else "--:" for name in frame.columns],
            *frame.to_numpy().tolist(),
        ]
        parts.append("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n")
        bullets = [
            f"- Incomplete, not ranked: {markdown(row.standing.model)}: {markdown('; '.join(row.standing.missing))}"
            for row in board.rows
            if not row.standing.complete
        ]
        for row, found in zip(board.rows, verdicts(board), strict=False):
            if found is not None:
                bullets.append(f"- {markdown(row.standing.model)}: {markdown(found.sentence(), 2000)}")
        bullets += [f"- {markdown(note)}" for note in notes(board)[1:]]
        tied = [markdown(row.standing.model) for row in board.rows if row.tied]
        if tied:
            bullets.append(f"- Not told apart by a paired test at 5 % (Holm): {', '.join(tied)}")
        if bullets:
            parts.append("\n".join(bullets) + "\n")
    return "\n".join(parts)


def csv_table(found: Sequence[Summary]) -> str:
    """One row for each evaluation and attack; numbers as numbers, and no text that a spreadsheet would run as a formula."""
    frame = to_frame(found)
    words = {each.evaluation.spec.identity: one.conclusion for each in found if (one := verdict_on_record(each))}
    if words:
        frame["verdict"] = frame["run"].map(words).fillna("")
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].map(lambda value: spreadsheet(value) if isinstance(value, str) else value)
    return str(frame.to_csv(index=False, lineterminator="\n"))


def latex_tables(tables: Sequence[Board]) -> str:
    """The boards as LaTeX tables for the package booktabs."""
    parts = ["% Needs \\usepackage{booktabs}.\n"]
    for board in tables:
        key = board.key
        frame = _frame(board, latex, _latex_interval, names=("$A_\\mathrm{std}$", "$A_\\mathrm{rob}$"), costs=False)
        caption = (
            f"Accuracy in percent on {latex(key.dataset)}, {latex(board.threat)}, suite {latex(key.suite)}, $n = {key.n}$, "
            f"with 95\\,\\% intervals. {latex(BOUND.partition('. ')[0])}."
            f"{' Cascade: the column of an attack is what is left after it.' if key.cascade else ''}"
        )
        parts.append(
            str(
                frame.to_latex(
                    index=False, escape=False, caption=caption, column_format="l" + "r" * (len(frame.columns) - 1), position="t"
                )
            )
        )
    return "\n".join(parts)


def _frame(
    board: Board,
    escape: Callable[[object], str],
    figure: Callable[[Interval | None, int], str],
    *,
    names: tuple[str, str] = ("A\\_std", "A\\_rob"),
    costs: bool = True,
) -> pd.DataFrame:
    """The papers' form: model, A_std, one column for each attack, A_rob."""
    n = board.key.n

    judged = verdicts(board)

    def cells(at: int, row: Row) -> list[str]:
        each = row.standing
        model = escape(each.model) + (" (stochastic)" if each.stochastic else "")
        found = [model if each.complete else f"{model} (incomplete)", figure(each.a_std, n)]
        found += [figure(shown(row, label, board.key.cascade), n) for label in board.labels]
        found.append(figure(each.a_rob, n))
        found += ["–" if one is None else one.conclusion for one in judged[at : at + 1]]
        if costs:
            found.append(count_text(sum(attack.forwards for attack in each.attacks)))
            found.append(count_text(sum(attack.backwards for attack in each.attacks)))
            found.append(duration_text(sum(attack.seconds for attack in each.attacks)))
        return found

    columns = ["Model", names[0], *map(escape, board.labels), names[1], *(["Verdict"] if judged else [])]
    columns += ["forwards", "backwards", "time"] if costs else []
    return pd.DataFrame([cells(at, row) for at, row in enumerate(board.rows)], columns=columns)


def _latex_interval(interval: Interval | None, n: int) -> str:
    if interval is None:
        return "--"
    low, high = percent(interval.low, n), percent(interval.high, n)
    return f"{percent(interval.value, n)} {{\\scriptsize [{low}, {high}]}}"
