"""Tables for the terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.table import Table
from rich.text import Text

from kwbench.finding import Finding
from kwbench.formatting import count_text, interval_text, percent, plain
from kwbench.record.certificates import bounds_text
from kwbench.record.joint import Joint
from kwbench.record.minimum_norm import DistanceCurve
from kwbench.record.summary import Summary
from kwbench.report.leaderboard import Board, boards, judging_rule, shown
from kwbench.statistics import Interval
from kwbench.verdict import CAVEAT, Verdict, verdict_on_record

# The width of "95.3–100.0".
_INTERVAL_WIDTH = 10
_COLOURS = {"confirmed": "green", "overestimated": "red", "degenerate": "red", "inconclusive": "yellow"}
# The sentence of a verdict may hold several statements.
_SENTENCE = 1000
# Precisions of a search other than that of the predictions that count.
_PRECISIONS = {"bfloat16": "bfloat16", "tf32": "TF32", "folded": "float32 with batch norms folded into convolutions"}
_KINDS = {"doubt": "red", "masking": "yellow", "note": "dim"}

EARLIER_VERSION = "measured by an earlier version of kwbench"


def text_table(summaries: Sequence[Summary]) -> ConsoleRenderable:
    """Return a table for each board: A_std, the accuracy under each attack and A_rob, in percent with 95 % intervals.

    Models are rows. If the attacks do not fit into the console's width, models are columns, in several tables if necessary.
    The result is for a rich console to print.
    """
    return _Tables(tuple(boards(summaries)))


@dataclass(frozen=True, slots=True)
class _Tables:
    boards: tuple[Board, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for board in self.boards:
            fits = _width(board) <= options.max_width
            yield from [_models_as_rows(board)] if fits else _models_as_columns(board, options.max_width)
            for row in board.rows:
                if not row.summary.complete:
                    reason = plain("; ".join(row.summary.missing))
                    yield Text(f"  incomplete, not ranked: {plain(row.summary.model)} ({reason})", "yellow")
                elif (verdict := verdict_on_record(row.summary)) is not None:
                    yield Text(f"  {plain(row.summary.model)}: {plain(verdict.sentence(), _SENTENCE)}")
            for note in notes(board):
                yield Text(f"  {note}", "dim")


def notes(board: Board) -> list[str]:
    """Return what a reader of a board must know, one sentence each; the first is about every board."""
    sentences = ["A_rob is an upper bound found by these attacks; stronger attacks can only lower it. Intervals: 95 %."]
    if board.key.cascade:
        sentences.append(
            "Cascade: each attack ran only on the samples that no earlier attack had broken; "
            "its column is the accuracy after it and all attacks before it."
        )
    if any(verdict_on_record(row.summary) for row in board.rows):
        sentences.append(CAVEAT)
    for row in board.rows:
        sentences += _run_notes(row.summary)
        for attack in row.summary.attacks:
            name = f"{plain(row.summary.model)}, {plain(attack.name)}"
            if attack.other_accuracy is not None and attack.other_accuracy != attack.accuracy:
                other = "clipped" if judging_rule(attack) == "distance" else "distance"
                sentences.append(f"{name}: {percent(attack.other_accuracy.value, board.key.n)} if judged by {other}.")
            if attack.surrogate_accuracy is not None:
                accuracy = percent(attack.surrogate_accuracy.value, board.key.n)
                sentences.append(
                    f"{name}: the surrogate {plain(attack.surrogate)} is right on {accuracy} % of the images made against it."
                )
    return sentences


def _run_notes(summary: Summary) -> list[str]:
    """Notes on the model; what each attack of a cascade broke; which did not run; the cost; accuracy under the protocol."""
    model, sentences = plain(summary.model), []
    if summary.earlier_version:
        sentences.append(f"{model}: {EARLIER_VERSION}.")
    sentences += [f"{model}: {plain(note)}." for note in summary.notes]
    if summary.cascade and (breaking := [attack for attack in summary.attacks if attack.broke]):
        counts = ", ".join(f"{plain(attack.name)} {attack.broke} of {attack.n}" for attack in breaking)
        sentences.append(f"{model}: samples whose worst case is due to each attack: {counts}.")
    by_precision = {
        words: ", ".join(plain(attack.name) for attack in summary.attacks if attack.precision == precision)
        for precision, words in _PRECISIONS.items()
    }
    if any(by_precision.values()):
        searches = "; ".join(f"in {words}: {labels}" for words, labels in by_precision.items() if labels)
        sentences.append(f"{model}: searched {searches}. Predictions count in float32.")
    after = summary.evaluation.spec.spec.get("after", {})
    # An attack that waits only for skipped ones needs no mention.
    skipped = {
        label: reason for label, reason in summary.skipped.items() if not summary.skipped.keys() >= {*after.get(label, "-")}
    }
    if skipped:
        reasons = "; ".join(f"{plain(label)} ({plain(reason)})" for label, reason in skipped.items())
        sentences.append(f"{model}: did not run: {reasons}.")
    if summary.cascade and summary.budget is not None:
        used, budget = count_text(summary.used), count_text(summary.budget)
        sentences.append(f"{model}: {used} passes per sample, out of at most {budget} if no sample had been broken.")
    # A verdict says so itself.
    if summary.bounds is not None and not summary.findings:
        sentences.append(f"{model}: {bounds_text(summary)} ({summary.bounds}).")
    if summary.a_protocol is not None:
        attacks = ", ".join(map(plain, summary.protocol))
        sentences.append(f"{model}: accuracy under {attacks} alone: {interval_text(summary.a_protocol, summary.n)}.")
    return sentences


def verdicts(board: Board) -> list[Verdict | None]:
    """Return the verdict on each row of a board, None if it was not diagnosed; an empty list if no row was."""
    row_verdicts = [verdict_on_record(row.summary) for row in board.rows]
    return row_verdicts if any(row_verdicts) else []


def _title(board: Board) -> Text:
    key = board.key
    return Text(f"{plain(key.dataset)}, {board.threat}, suite {plain(key.suite)}, n = {key.n}; percent", "bold")


def _models_as_rows(board: Board) -> Table:
    table = Table(title=_title(board), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "A_std", *map(plain, board.labels), *certified_heading(board), "A_rob"):
        table.add_column(Text(name), justify="left" if name == "model" else "right", no_wrap=name == "model")
    conclusions = [_conclusion(verdict) for verdict in verdicts(board)]
    if conclusions:
        table.add_column("verdict", no_wrap=True)
    for position, row in enumerate(board.rows):
        summary, n = row.summary, board.key.n
        accuracies = [summary.a_std, *(shown(row, label, board.key.cascade) for label in board.labels)]
        table.add_row(
            Text(plain(summary.model)),
            *(_cell(accuracy, n) for accuracy in accuracies),
            *(_certified_cell(summary) for _ in certified_heading(board)),
            _cell(summary.a_rob, n, "bold"),
            *conclusions[position : position + 1],
        )
    return table


def _models_as_columns(board: Board, width: int) -> list[Table]:
    n, labels = board.key.n, ("A_std", *map(plain, board.labels), "A_rob")
    column_width = max(_INTERVAL_WIDTH, *(len(plain(row.summary.model)) for row in board.rows))
    columns = max(1, (width - max(map(len, labels)) - 2) // (column_width + 2))
    conclusions = [_conclusion(verdict) for verdict in verdicts(board)]
    tables = []
    for start in range(0, len(board.rows), columns):
        rows = board.rows[start : start + columns]
        table = Table(title=None if start else _title(board), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        for row in rows:
            table.add_column(Text(plain(row.summary.model)), justify="right", overflow="fold")
        table.add_row("A_std", *(_cell(row.summary.a_std, n) for row in rows), end_section=True)
        for label in board.labels:
            cells = (_cell(shown(row, label, board.key.cascade), n) for row in rows)
            table.add_row(Text(plain(label)), *cells, end_section=label == board.labels[-1])
        for heading in certified_heading(board):
            table.add_row(heading, *(_certified_cell(row.summary) for row in rows))
        table.add_row("A_rob", *(_cell(row.summary.a_rob, n, "bold") for row in rows))
        if conclusions:
            table.add_row("verdict", *conclusions[start : start + columns])
        tables.append(table)
    return tables


def _width(board: Board) -> int:
    """The width of the table with models as rows."""
    columns = ("A_std", *board.labels, *certified_heading(board), "A_rob")
    models = max(len(plain(row.summary.model)) for row in board.rows)
    verdict = 2 + max((len(_conclusion(verdict).plain.partition("\n")[0]) for verdict in verdicts(board)), default=-2)
    return models + verdict + sum(2 + max(_INTERVAL_WIDTH, len(plain(label))) for label in columns)


def certified_heading(board: Board) -> tuple[str, ...]:
    """Return the heading of the column of certified accuracies, if any model of the board has one."""
    return ("certified",) if any(row.summary.a_certified is not None for row in board.rows) else ()


def _certified_cell(summary: Summary) -> Text:
    if summary.a_certified is None:
        return Text("not\ncertified", "dim", justify="right")
    return _cell(summary.a_certified, summary.n)


def _conclusion(verdict: Verdict | None) -> Text:
    if verdict is None:
        return Text("–", "dim")
    return Text.assemble(
        (verdict.conclusion, _COLOURS[verdict.conclusion]), (f"\n{verdict.bounds}" if verdict.bounds else "", "dim")
    )


def _cell(interval: Interval | None, n: int, style: str = "") -> Text:
    if interval is None:
        return Text("–", "dim", justify="right")
    return Text.assemble(
        (percent(interval.value, n), style),
        (f"\n{percent(interval.low, n)}–{percent(interval.high, n)}", "dim"),
        justify="right",
    )


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the checks of a diagnosis as a table: figure, threshold, whether the check fires, and what it found."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "figure", "threshold", "", "what was found"):
        table.add_column(name, justify="right" if name in ("figure", "threshold") else "left", no_wrap=name == "check")
    for finding in findings:
        figure = "–" if finding.figure is None else f"{finding.figure:.3g}"
        result, style = ("fires: " + finding.kind, _KINDS[finding.kind]) if finding.fires else ("", "dim")
        if finding.figure is None:
            result, style = "not done", "yellow"
        table.add_row(
            Text(plain(finding.check), style),
            figure,
            f"{finding.threshold:.3g}",
            Text(result, style),
            Text(plain(finding.statement, _SENTENCE)),
        )
    return table


def joint_text(whole: Joint) -> str:
    """Return the robust accuracy over several threat models in one sentence, percent with its 95 % interval."""
    first = whole.evaluations[0]
    alone = ", ".join(
        f"{one.threat} {'-' if one.a_rob is None else percent(one.a_rob.value, one.n)}" for one in whole.evaluations
    )
    reached = f"A_rob = {interval_text(whole.a_rob, first.n)}"
    if whole.a_certified is not None:
        reached = f"certified {percent(whole.a_certified.value, first.n)} <= {reached}"
    return (
        f"{plain(first.model)} ({plain(first.dataset)}, n = {first.n}), worst case over all threat models ({alone}): {reached}"
    )


# Of every radius, the table shows where the robust accuracy falls to these.
_FALLEN_TO = (0.75, 0.5, 0.25, 0.1)


def distance_table(curves: Sequence[DistanceCurve]) -> Table:
    """Return A_std, A_rob at the radius of the threat model, and the radii at which A_rob falls to some accuracies.

    `curves` has one element for each model.
    """
    first = curves[0].summary
    title = f"{plain(first.dataset)}, n = {first.n}; A_rob, percent, and the radii in {first.threat.norm} where it falls"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "A_std", f"eps = {first.threat.eps_text}", *(f"to {percent(share, 100)}" for share in _FALLEN_TO)):
        table.add_column(Text(name), justify="left" if name == "model" else "right")
    for curve in curves:
        summary = curve.summary
        radii = [f"{radius:.3g}" if math.isfinite(radius) else "never" for radius in map(curve.radius, _FALLEN_TO)]
        accuracies = (summary.a_std, curve.accuracy(summary.threat.radius))
        cells = [interval_text(accuracy, first.n) for accuracy in accuracies]
        table.add_row(Text(plain(summary.model)), *cells, *radii)
    return table


def sweep_table(parameter: str, values: Sequence[str], sweeps: Sequence[Sequence[Summary]]) -> Table:
    """Return A_std and A_rob at each value of a sweep, a row for each model; percent with 95 % intervals.

    Each element of `sweeps` has the summaries of one model, one for each value.
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
