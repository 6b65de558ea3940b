"""The tables for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.table import Table
from rich.text import Text

from kwbench.finding import Finding
from kwbench.formatting import count_text, interval_text, percent, plain
from kwbench.record.summary import Summary
from kwbench.report.leaderboard import Board, boards, judging_rule, shown
from kwbench.statistics import Interval
from kwbench.verdict import CAVEAT, Verdict, verdict_on_record

# "95.3–100.0"
_FIGURE = 10
_COLOURS = {"confirmed": "green", "overestimated": "red", "degenerate": "red", "inconclusive": "yellow"}
# A verdict's sentence may hold several statements.
_SENTENCE = 1000
_KINDS = {"doubt": "red", "masking": "yellow", "note": "dim"}


def text_table(standings: Sequence[Summary]) -> ConsoleRenderable:
    """The papers' tables, one for each set of comparable evaluations: A_std, one figure for each attack, A_rob, in percent
    with 95 % intervals and n. Models are rows; where the attacks are too many for the console's width, models are columns, in
    as many tables as it takes. Print it with a rich console."""
    return _Tables(tuple(boards(standings)))


@dataclass(frozen=True, slots=True)
class _Tables:
    boards: tuple[Board, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for board in self.boards:
            fits = _across_width(board) <= options.max_width
            yield from [_across(board)] if fits else _down(board, options.max_width)
            for row in board.rows:
                if not row.standing.complete:
                    why = plain("; ".join(row.standing.missing))
                    yield Text(f"  incomplete, not ranked: {plain(row.standing.model)} ({why})", "yellow")
                elif (found := verdict_on_record(row.standing)) is not None:
                    yield Text(f"  {plain(row.standing.model)}: {plain(found.sentence(), _SENTENCE)}")
            for note in notes(board):
                yield Text(f"  {note}", "dim")


def notes(board: Board) -> list[str]:
    """What a reader of a board must know, one sentence each."""
    found = ["A_rob is an upper bound found by these attacks; stronger attacks can only lower it. Intervals: 95 %."]
    if board.key.cascade:
        found.append("Cascade: each attack saw only samples that still stood; its column is what is left after it.")
    if any(verdict_on_record(row.standing) for row in board.rows):
        found.append(CAVEAT)
    for row in board.rows:
        found += _course(row.standing)
        for attack in row.standing.attacks:
            if attack.other_accuracy is not None and attack.other_accuracy != attack.accuracy:
                other = "clipped" if judging_rule(attack) == "distance" else "distance"
                found.append(
                    f"{plain(row.standing.model)}, {plain(attack.name)}: {percent(attack.other_accuracy.value, board.key.n)} "
                    f"if judged by {other}."
                )
            if attack.surrogate_accuracy is not None:
                found.append(
                    f"{plain(row.standing.model)}, {plain(attack.name)}: the surrogate {plain(attack.surrogate)} is itself "
                    f"right on {percent(attack.surrogate_accuracy.value, board.key.n)} % of the images made against it."
                )
    return found


def _course(standing: Summary) -> list[str]:
    """How a cascade went: what each attack broke, what was ruled out, what it took; and what the usual protocol came to."""
    name, found = plain(standing.model), []
    if standing.cascade and (broke := [attack for attack in standing.attacks if attack.broke]):
        each = ", ".join(f"{plain(attack.name)} {attack.broke} of {attack.n}" for attack in broke)
        found.append(f"{name}: the worst case is {each}.")
    after = standing.evaluation.spec.spec.get("after", {})
    # What waits only for what did not run needs no mention.
    first = {label: why for label, why in standing.skipped.items() if not standing.skipped.keys() >= {*after.get(label, "-")}}
    if first:
        each = "; ".join(f"{plain(label)} ({plain(reason)})" for label, reason in first.items())
        found.append(f"{name}: did not run: {each}.")
    if standing.cascade and standing.budget is not None:
        used, budget = count_text(standing.used), count_text(standing.budget)
        found.append(f"{name}: {used} passes a sample, of at most {budget} if nothing had been broken.")
    if standing.a_protocol is not None:
        attacks = ", ".join(map(plain, standing.protocol))
        found.append(f"{name}: under {attacks} alone {interval_text(standing.a_protocol, standing.n)}.")
    return found


def verdicts(board: Board) -> list[Verdict | None]:
    """The verdict on each row of a board, None for those not diagnosed; an empty list if none of them was."""
    found = [verdict_on_record(row.standing) for row in board.rows]
    return found if any(found) else []


def _title(board: Board) -> Text:
    key = board.key
    return Text(f"{plain(key.dataset)}, {board.threat}, suite {plain(key.suite)}, n = {key.n}; percent", "bold")


def _across(board: Board) -> Table:
    table = Table(title=_title(board), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "A_std", *map(plain, board.labels), "A_rob"):
        table.add_column(Text(name), justify="left" if name == "model" else "right", no_wrap=name == "model")
    words = [_word(each) for each in verdicts(board)]
    if words:
        table.add_column("verdict", no_wrap=True)
    for at, row in enumerate(board.rows):
        each, n = row.standing, board.key.n
        figures = [each.a_std, *(shown(row, label, board.key.cascade) for label in board.labels)]
        table.add_row(
            Text(plain(each.model)),
            *(_cell(figure, n) for figure in figures),
            _cell(each.a_rob, n, "bold"),
            *words[at : at + 1],
        )
    return table


def _down(board: Board, width: int) -> list[Table]:
    n, labels = board.key.n, ("A_std", *map(plain, board.labels), "A_rob")
    widest = max(_FIGURE, *(len(plain(row.standing.model)) for row in board.rows))
    at_once = max(1, (width - max(map(len, labels)) - 2) // (widest + 2))
    tables = []
    for start in range(0, len(board.rows), at_once):
        some = board.rows[start : start + at_once]
        table = Table(title=None if start else _title(board), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        for row in some:
            table.add_column(Text(plain(row.standing.model)), justify="right", overflow="fold")
        table.add_row("A_std", *(_cell(row.standing.a_std, n) for row in some), end_section=True)
        for label in board.labels:
            figures = [shown(row, label, board.key.cascade) for row in some]
            table.add_row(Text(plain(label)), *(_cell(each, n) for each in figures), end_section=label == board.labels[-1])
        table.add_row("A_rob", *(_cell(row.standing.a_rob, n, "bold") for row in some))
        if words := [_word(each) for each in verdicts(board)][start : start + at_once]:
            table.add_row("verdict", *words)
        tables.append(table)
    return tables


def _across_width(board: Board) -> int:
    columns = ("A_std", *board.labels, "A_rob")
    models = max(len(plain(row.standing.model)) for row in board.rows)
    verdict = 2 + max((len(_word(each)) for each in verdicts(board)), default=-2)
    return models + verdict + sum(2 + max(_FIGURE, len(plain(label))) for label in columns)


def _word(verdict: Verdict | None) -> Text:
    if verdict is None:
        return Text("–", "dim")
    return Text(verdict.conclusion, _COLOURS[verdict.conclusion])


def _cell(interval: Interval | None, n: int, style: str = "") -> Text:
    if interval is None:
        return Text("–", "dim", justify="right")
    return Text.assemble(
        (percent(interval.value, n), style),
        (f"\n{percent(interval.low, n)}–{percent(interval.high, n)}", "dim"),
        justify="right",
    )


def findings_table(findings: Sequence[Finding]) -> Table:
    """The checks of a diagnosis: what each found, its figure against its threshold, and whether it fires."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "figure", "threshold", "", "what was found"):
        table.add_column(name, justify="right" if name in ("figure", "threshold") else "left", no_wrap=name == "check")
    for each in findings:
        figure = "–" if each.figure is None else f"{each.figure:.3g}"
        word, style = ("fires: " + each.kind, _KINDS[each.kind]) if each.fires else ("", "dim")
        if each.figure is None:
            word, style = "not done", "yellow"
        table.add_row(
            Text(plain(each.check), style),
            figure,
            f"{each.threshold:.3g}",
            Text(word, style),
            Text(plain(each.statement, _SENTENCE)),
        )
    return table


def sweep_table(parameter: str, values: Sequence[str], sweeps: Sequence[Sequence[Summary]]) -> Table:
    """The table of a sweep: A_std and A_rob at each value, a row for each model; percent with 95 % intervals.

    `sweeps` has the summaries of one model at each of the values, for each model.
    """
    first = sweeps[0][0]
    title = f"{plain(first.dataset)}, n = {first.n}; A_rob, percent, by {plain(parameter)}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "A_std", *values):
        table.add_column(Text(plain(name)), justify="left" if name == "model" else "right")
    for sweep in sweeps:
        accuracies = [sweep[0].a_std, *(summary.a_rob for summary in sweep)]
        cells = (interval_text(accuracy, first.n) for accuracy in accuracies)
        table.add_row(Text(plain(sweep[0].model)), *cells)
    return table
