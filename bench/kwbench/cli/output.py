"""What commands print to stdout: JSON, and tables that are plain text when piped."""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwbench.errors import CannotEvaluate, KwbenchError
from kwbench.formatting import count_text, printable
from kwbench.report.drawing.picture import Style

if TYPE_CHECKING:
    from rich.console import Console

    from kwbench.evaluation.execution.timings import Timings
    from kwbench.evaluation.plan import Plan
    from kwbench.evaluation.studies.certifying import Certified
    from kwbench.record.joint import Joint
    from kwbench.record.measurement import Measurement
    from kwbench.record.summary import Summary
    from kwbench.verdict import Verdict

# Piped output has no width of its own, and a table folded to 80 columns would be unreadable.
_PIPED_WIDTH = 160


def command_line() -> str:
    """Return the command as it was typed, for the record."""
    return shlex.join(["kwbench", *sys.argv[1:]])


def progress_line(text: str) -> None:
    """Print a line to stderr at once."""
    print(printable(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity raise ValueError."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_certified(
    results: "Sequence[Summary]", made: "Sequence[Certified]", as_json: bool, failures: Mapping[str, KwbenchError] | None = None
) -> None:
    """Print the bounds of robust accuracy from both sides, in percent; as JSON also the positions of the images.

    `failures` by model.
    """
    rows: list[dict[str, Any]] = []
    for result, certified in zip(results, made, strict=True):
        rows.append(
            {
                "model": result.model,
                "dataset": result.dataset,
                "n": result.n,
                "threat": str(result.threat),
                "certified": len(certified.certified) / result.n,
                "a_rob": None if result.a_rob is None else result.a_rob.value,
                "certified_images": list(certified.certified),
                "standing_images": list(certified.standing),
                "seconds": round(certified.seconds, 1),
            }
        )
    if as_json:
        print_one_or_all(rows, failures)
        return
    for row in rows:
        bounds = f"certified {100 * row['certified']:.1f} <= A_rob <= {100 * (row['a_rob'] or 0):.1f}"
        spent = f"{len(row['standing_images'])} images bounded in {row['seconds']} s"
        print(printable(f"{row['model']} ({row['dataset']}, {row['threat']}, n = {row['n']}): {bounds}; {spent}"))


def print_lines(lines: Sequence[object]) -> None:
    """Print every item on its own line."""
    for line in lines:
        print(printable(str(line)))


def console() -> "Console":
    """Return a rich console on stdout, as wide as the terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def print_table(
    rows: Sequence[Mapping[str, Any]], *, headings: Mapping[str, str] | None = None, optional: Sequence[str] = ()
) -> None:
    """Print rows with the same keys as a table; the keys are its headings unless `headings` has other words for them.

    Columns in `optional` are left out, the first one first, where the terminal is too narrow for the words of all columns.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    terminal = console()
    left_out: set[str] = set()
    for key in optional:
        if sum(_least_width(rows, kept, headings or {}) + 2 for kept in rows[0] if kept not in left_out) <= terminal.width:
            break
        left_out.add(key)
    rows = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, key in enumerate(rows[0]):
        # A name in the first column stays whole, so that it can be copied.
        table.add_column(Text((headings or {}).get(key, key)), overflow="fold", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(Text(printable("" if value is None else str(value))) for value in row.values()))
    terminal.print(table)


def _least_width(rows: Sequence[Mapping[str, Any]], key: str, headings: Mapping[str, str]) -> int:
    """Return the length of the longest word in a column."""
    return max(len(word) for text in (headings.get(key, key), *(str(row[key]) for row in rows)) for word in [*text.split(), ""])


def summary_json(summary: "Summary") -> dict[str, Any]:
    """Return an evaluation with its verdict as plain data."""
    from kwbench.record.results import to_json
    from kwbench.verdict import verdict_json, verdict_on_record

    return {**to_json(summary), "verdict": verdict_json(verdict_on_record(summary))}


def print_summaries(
    summaries: Sequence["Summary"],
    as_json: bool,
    failures: Mapping[str, KwbenchError] | None = None,
    timings: "Timings | None" = None,
    joints: "Sequence[Joint]" = (),
) -> None:
    """Print evaluations: as JSON, one object for a single one and else a list, or as tables. `failures` by model.

    The worst cases over several threat models follow, and the `timings` of the command: a key of the single object, the last
    element of a list, or a table.
    """
    if as_json:
        from kwbench.record.joint import joint_json

        answers = [summary_json(summary) for summary in summaries]
        answers += [{"model": whole.evaluations[0].model, "joint": joint_json(whole)} for whole in joints]
        if timings is not None:
            spent = {"timings": timings.to_json()}
            answers = [*answers, spent] if len(answers) != 1 or failures else [answers[0] | spent]
        print_one_or_all(answers, failures)
        return
    if summaries:
        print_summary_tables(summaries)
    if joints:
        from kwbench.report.terminal import joint_text

        print_lines([joint_text(whole) for whole in joints])
    if timings is not None:
        seconds = timings.seconds()
        wall = sum(seconds.values())
        print_table(
            [
                {"phase": ": ".join(phase), "seconds": f"{spent:.2f}", "share": f"{100 * spent / wall:.0f} %"}
                for phase, spent in [*seconds.items(), (("wall",), wall)]
            ]
        )


def print_plans(
    plans: "Sequence[Plan]", price: float | None, as_json: bool, failures: Mapping[str, KwbenchError] | None = None
) -> None:
    """Print what evaluations would take: a row for each attack, then all in all. `price` of an hour; `failures` by model."""
    rows: list[dict[str, Any]] = [
        {
            "model": plan.model,
            "attack": attack.label,
            "samples": attack.samples,
            "passes": attack.passes,
            "hours": None if attack.seconds is None else attack.seconds / 3600,
            "cost": None if attack.seconds is None or price is None else attack.seconds / 3600 * price,
            "timed_on": attack.timed_on or None,
        }
        for plan in plans
        for attack in plan.attacks
    ]
    hours = sum(plan.seconds for plan in plans) / 3600
    untimed = sorted({f"{plan.model} {label}" for plan in plans for label in plan.untimed})
    if as_json:
        failed = {model: str(failure) for model, failure in (failures or {}).items()}
        total = {"hours": hours, "cost": None if price is None else hours * price, "untimed": untimed}
        print_json({"attacks": rows, **total, **({"errors": failed} if failed else {})})
        return
    shown = [
        row
        | {
            "passes": "" if row["passes"] is None else count_text(row["passes"]),
            "hours": "no timing" if row["hours"] is None else f"{row['hours']:.3g}",
            "cost": "" if row["cost"] is None else f"{row['cost']:.3g}",
        }
        for row in rows
    ]
    print_table(shown, headings={"passes": "passes, at most", "timed_on": "timed on"})
    complete = sum(not plan.attacks for plan in plans)
    cost = "" if price is None else f", cost {hours * price:.3g}"
    least = "at least " if untimed else ""
    print_lines([f"{len(plans)} models, {complete} of them complete: {least}{hours:.3g} hours of one evaluator{cost}"])
    if untimed:
        print_lines([f"no timing on record for {len(untimed)} attacks, so that they count as nothing"])


def print_one_or_all(answers: Sequence[dict[str, Any]], failures: Mapping[str, KwbenchError] | None = None) -> None:
    """Print a single answer as a JSON object, and several as a list, in which models that failed have an `error`."""
    failed = [{"model": model, "error": str(failure)} for model, failure in (failures or {}).items()]
    print_json(answers[0] if len(answers) == 1 and not failed else [*answers, *failed])


def print_summary_tables(summaries: Sequence["Summary"]) -> None:
    """Print evaluations as the tables of A_std, each attack and A_rob."""
    from kwbench.report.terminal import text_table

    console().print(text_table(summaries))


def print_diagnoses(
    diagnoses: Sequence[tuple["Summary", "Verdict"]], as_json: bool, failures: Mapping[str, KwbenchError] | None = None
) -> None:
    """Print evaluations with the findings of their checks and their verdicts. `failures` by model."""
    from rich.text import Text

    from kwbench.formatting import plain
    from kwbench.record.results import to_json
    from kwbench.report.terminal import findings_table
    from kwbench.verdict import CAVEAT, finding_json, verdict_json

    if as_json:
        print_one_or_all(
            [
                {
                    **to_json(summary),
                    "verdict": verdict_json(verdict),
                    "findings": [finding_json(finding) for finding in summary.findings],
                }
                for summary, verdict in diagnoses
            ],
            failures,
        )
        return
    if diagnoses:
        print_summary_tables([summary for summary, _ in diagnoses])
    terminal = console()
    for summary, verdict in diagnoses:
        terminal.print(Text(plain(summary.model), "bold"))
        terminal.print(findings_table(summary.findings))
        terminal.print(Text(f"{plain(summary.model)}: {plain(verdict.sentence(), 2000)} {CAVEAT}\n"))


def require_complete(summaries: Sequence["Summary"]) -> None:
    """Raise CannotEvaluate unless every evaluation has a robust accuracy."""
    if not all(summary.complete for summary in summaries):
        raise CannotEvaluate("some rows are invalid or errors, so there is no robust accuracy; `kwbench show MODEL` lists them")


def print_measurements(measurements: Sequence["Measurement"], folder: Path | None, style: Style, as_json: bool) -> None:
    """Print what experiments measured, as JSON with every number; draw it into the folder if one is given."""
    files = draw_measurements(measurements, folder, style) if folder is not None else []
    if as_json:
        results = [
            {
                "experiment": measured.experiment,
                "model": measured.model,
                "dataset": measured.dataset,
                "run": measured.identity,
                "spec": measured.spec,
                "arrays": {name: finite(array.tolist()) for name, array in measured.arrays.items()},
            }
            for measured in measurements
        ]
        print_json({"files": [str(path) for path in files], "results": results})
        return
    for measured in measurements:
        name = " ".join(["experiment", measured.experiment, measured.model]).strip()
        print(printable(f"{name}: run {measured.identity[:12]}"))
    print_lines(files)
    if not files:
        progress_line("`kwbench report --figures` draws it")


def draw_measurements(measurements: Sequence["Measurement"], folder: Path, style: Style) -> list[Path]:
    """Draw what experiments measured into files in the folder, and return the files."""
    from kwbench.files import write_whole
    from kwbench.report.figures import figure_files, figures

    files = []
    for name, content in figure_files(figures(measurements, [], []), style).items():
        files.append(folder / Path(name).name)
        write_whole(files[-1], content)
    return files


def finite(value: Any) -> Any:
    """Return nested lists of numbers with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, list):
        return [finite(element) for element in value]
    return value if math.isfinite(value) else None
