"""Commands that read the record: report, show, compare, check and claims."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kwbench.cli.completion import complete_models
from kwbench.cli.options import Database, FigureStyle, Json
from kwbench.cli.output import (
    console,
    print_json,
    print_lines,
    print_summary_tables,
    print_table,
    progress_line,
    summary_json,
)
from kwbench.cli.panels import FORMAT, OUTPUT, bundled
from kwbench.cli.stores import open_store
from kwbench.errors import UsageError
from kwbench.formatting import printable
from kwbench.imports import importing
from kwbench.report import DEFAULT, FORMATS, write_report
from kwbench.report.drawing.picture import Style

if TYPE_CHECKING:
    from kwbench.claims import Claim
    from kwbench.record.evaluation import Evaluation
    from kwbench.record.store import Store
    from kwbench.regression.comparison import PairedComparison

app = typer.Typer()
PANEL = "Results on record"
COMPARISON = "Comparison"


def _format_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each format of reports; its parameter `formats` receives the names of those chosen."""
    flags = [
        inspect.Parameter(
            name.replace("-", "_"),
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option(f"--{name}", help=form.option_help, rich_help_panel=FORMAT)],
        )
        for name, form in FORMATS.items()
    ]
    return bundled(command, "formats", flags, lambda values: {name for name in FORMATS if values[name.replace("-", "_")]})


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench report --html --csv --output reports")
@_format_options
def report(
    formats: Collection[str],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.", rich_help_panel=OUTPUT)] = Path(
        "reports"
    ),
    style: FigureStyle = Style.SCREEN,
    db: Database = "results.db",
    as_json: Json = False,
) -> None:
    """Write the results on record as tables and figures; without a format, as a web page."""
    files = write_report(open_store(db), output, formats or {DEFAULT}, style)
    if as_json:
        print_json({"files": [str(path) for path in files]})
    else:
        # The many files that only pages link to are not listed.
        print_lines([path for path in files if path.parent.name not in ("assets", "runs")])


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench show resnet18-kwta0.1 --failures")
def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model's name as in the tables.", autocompletion=complete_models)
    ],
    failures: Annotated[
        bool, typer.Option("--failures", help="Only the samples whose outcome is invalid or an error.", rich_help_panel=OUTPUT)
    ] = False,
    db: Database = "results.db",
    as_json: Json = False,
) -> None:
    """Show a model's newest evaluation, and the samples that have no valid outcome or a note."""
    with importing():
        from kwbench.record.summaries import summaries

    store = open_store(db)
    newest = _newest(store, model, db)
    (summary,) = summaries(store, [newest])
    rows = [
        {"attack": label, "index": outcome.index, "sample": outcome.sample, "status": str(outcome.status), "note": outcome.note}
        for label, attack_run in newest.attack_runs.items()
        for outcome in store.outcome_arrays(attack_run).remarkable().outcomes()
    ]
    if as_json:
        print_json({**summary_json(summary), "created": newest.created, "spec": newest.spec.spec, "rows": rows})
        return
    if not failures:
        print_summary_tables([summary])
    print_table(_grouped(rows))


def _grouped(rows: "Sequence[Mapping[str, Any]]") -> list[dict[str, Any]]:
    """Return one row for the samples of an attack that have the same status and note: their number, and the first of them."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["attack"], row["status"], row["note"]), []).append(row)
    return [
        {
            "attack": attack,
            "status": status,
            "samples": len(group),
            "first index": group[0]["index"],
            "first sample": group[0]["sample"],
            "note": note,
        }
        for (attack, status, note), group in groups.items()
    ]


def _newest(store: "Store", model: str, db: str) -> "Evaluation":
    """Return the evaluation of a model that was asked for last. Raises UsageError if there is none."""
    from kwbench.errors import did_you_mean

    own = store.evaluations(model=model)
    if not own:
        known = {evaluation.spec.model for evaluation in store.evaluations()}
        raise UsageError(f"{db}: nothing on record about {model!r}; {did_you_mean(model, known)}")
    return max(own, key=lambda evaluation: evaluation.recency)


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench export resnet18-kwta0.1 --adversarials images.npz")
def export(
    evaluation: Annotated[
        str,
        typer.Argument(
            metavar="EVALUATION", help="A model's name, or the first digits of a run.", autocompletion=complete_models
        ),
    ],
    adversarials: Annotated[
        Path, typer.Option(metavar="FILE", help="The npz file to write the images to.", rich_help_panel=OUTPUT)
    ],
    db: Database = "results.db",
    as_json: Json = False,
) -> None:
    """Write the adversarial images on record of an evaluation, the worst case of each sample, with labels and attacks."""
    import io

    with importing():
        import numpy as np

        from kwbench.files import write_whole
        from kwbench.record.export import adversarial_arrays, find_evaluation

    store = open_store(db)
    summary = find_evaluation(store, evaluation)
    arrays = adversarial_arrays(store, summary)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(adversarials, file.getvalue())
    if as_json:
        print_json({"file": str(adversarials), "images": len(arrays["x"]), "run": summary.evaluation.spec.identity})
    else:
        print_lines([f"{adversarials}: {len(arrays['x'])} images of {summary.model}"])


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench check --baseline baseline.json --junit junit.xml")
def check(
    baseline: Annotated[
        Path, typer.Option(metavar="FILE", help="The accepted results; --update writes them.", rich_help_panel=COMPARISON)
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Only these models; default: all in the baseline.", autocompletion=complete_models
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Allowed loss of robust accuracy, in percentage points.", rich_help_panel=COMPARISON)
    ] = 1.0,
    alpha: Annotated[float, typer.Option(help="Significance level of the paired test.", rich_help_panel=COMPARISON)] = 0.01,
    update: Annotated[
        bool, typer.Option("--update", help="Write the newest results into the baseline.", rich_help_panel=COMPARISON)
    ] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.", rich_help_panel=OUTPUT)] = None,
    badge: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a badge: .svg, or .json for shields.", rich_help_panel=OUTPUT),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also append Markdown, as for GITHUB_STEP_SUMMARY.", rich_help_panel=OUTPUT),
    ] = None,
    db: Database = "results.db",
    as_json: Json = False,
) -> None:
    """Compare the newest results with a baseline. Exit code 0: as robust; 1: less robust; 3: cannot tell.

    On GitHub, models that are not fine are annotated, and the summary of the step is written.
    """
    with importing():
        from kwbench.regression.annotations import annotations
        from kwbench.regression.badge import write_badge
        from kwbench.regression.baseline import update_baseline
        from kwbench.regression.gate import check as run
        from kwbench.regression.gate import check_json
        from kwbench.regression.job_summary import append_summary, markdown_summary
        from kwbench.regression.junit import write_junit
        from kwbench.regression.terminal import check_table

    store = open_store(db)
    if update:
        written = update_baseline(store, baseline, models)
        if as_json:
            print_json({"baseline": str(baseline), "models": written})
        else:
            print_lines([f"{baseline}: {', '.join(written)}"])
        return
    result = run(store, baseline, max_drop=max_drop, alpha=alpha, models=models)
    if junit is not None:
        write_junit(result, junit)
    if badge is not None:
        write_badge(result, badge)
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    if summary is None and on_github and os.environ.get("GITHUB_STEP_SUMMARY"):
        summary = Path(os.environ["GITHUB_STEP_SUMMARY"])
    if summary is not None:
        append_summary(result, summary)
    if on_github:
        # GitHub reads commands on stderr, too, and JSON on stdout stays whole.
        for line in annotations(result):
            progress_line(line)
    if as_json:
        print_json(check_json(result))
    elif console().is_terminal:
        console().print(check_table(result))
    else:
        print(printable(markdown_summary(result), keep="\n"))
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench compare resnet18-relu-at resnet18-kwta0.1-at")
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A model on record.", autocompletion=complete_models)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.", autocompletion=complete_models)],
    db: Database = "results.db",
    as_json: Json = False,
) -> None:
    """Compare two models on the same samples, with a paired test."""
    with importing():
        from kwbench.regression.comparison import compare as run
        from kwbench.regression.comparison import comparison_json

    comparisons = run(open_store(db), first, second)
    if as_json:
        print_json(comparison_json(comparisons))
        return
    for comparison in comparisons:
        print_lines(_comparison_lines(comparison))


def _comparison_lines(comparison: "PairedComparison") -> list[str]:
    """Return what was compared, and a line for each accuracy: difference, 95 % interval and p-value."""
    from kwbench.record.certificates import bounds_text

    spec = comparison.first.evaluation.spec
    names = f"{printable(spec.model)} - {printable(comparison.second.model)}"
    lines = [f"{names}: {printable(spec.dataset)}, {printable(spec.suite)}, {spec.threat}, n = {spec.n}"]
    for name, difference, test in (
        ("A_std", comparison.a_std_difference, comparison.a_std),
        ("A_rob", comparison.a_rob_difference, comparison.a_rob),
    ):
        lines.append(
            f"  {name}: {100 * difference.value:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}], "
            f"p = {test.p:.3g} ({test.method}, n = {test.n})"
        )
    both = (comparison.first, comparison.second)
    lines += [f"  {printable(summary.model)}: {bounds_text(summary)}" for summary in both]
    return lines


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench claims --paper xiao2020")
def claims(
    paper: Annotated[str | None, typer.Option(metavar="NAME", help="Only the claims of this paper.")] = None,
    lint: Annotated[
        bool, typer.Option("--lint", help="Only claims that cannot be true, and protocols that could not have worked.")
    ] = False,
    registry: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the papers' networks at full size into a registry to train from.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    db: Database = "results.db",
    as_json: Json = False,
) -> None:
    """Compare the papers' claims with the results on record, or report what is wrong with the claims themselves."""
    with importing():
        from kwbench.claims import claims_json, compare_claims, read_claims

    if registry is not None:
        _write_papers_registry(registry)
        return
    _require_paper(paper)
    wanted = [claim for claim in read_claims() if paper in (None, claim.paper)]
    if lint:
        _print_remarks(wanted, as_json)
        return
    # Without a database the claims can still be listed.
    store = open_store(db) if "://" in db or Path(db).exists() else None
    compared = compare_claims(wanted, store)
    if as_json:
        print_json(claims_json(compared))
        return
    from kwbench.report.claims import claims_table

    console().print(claims_table(compared))


def _write_papers_registry(path: Path) -> None:
    """Write the papers' networks as a registry. An existing file stays as it is; UsageError if it lacks some of them."""
    from kwbench.claims import full_size_entries, full_size_registry
    from kwbench.config.registry import read_registry
    from kwbench.files import write_whole

    if not path.exists():
        write_whole(path, full_size_registry())
    elif not read_registry(path).entries.keys() >= full_size_entries().keys():
        raise UsageError(f"{path}: exists and lacks networks of the papers; nothing is overwritten")
    print_lines([path])


def _require_paper(paper: str | None) -> None:
    from kwbench.claims import PAPERS
    from kwbench.errors import did_you_mean

    if paper is not None and paper not in PAPERS:
        raise UsageError(f"--paper {paper}: unknown; {did_you_mean(paper, PAPERS)}")


def _print_remarks(claims: "list[Claim]", as_json: bool) -> None:
    """Print what is wrong with claims."""
    from kwbench.claims import lint

    remarks = lint(claims)
    rows: list[dict[str, Any]] = [
        {
            "rule": remark.rule,
            "kind": remark.kind,
            "statement": remark.statement,
            "cells": [claim.name for claim in remark.claims],
        }
        for remark in remarks
    ]
    if as_json:
        print_json(rows)
    else:
        print_table([{**row, "cells": len(row["cells"])} for row in rows])
