"""Commands that measure robust accuracy: evaluate, diagnose and sweep."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kwbench.cli.completion import complete_suites
from kwbench.cli.each_model import evaluate_each
from kwbench.cli.executors import ExecutorOptions, executor_options
from kwbench.cli.options import (
    AttackNames,
    Budget,
    EvaluationOptions,
    FigureStyle,
    Json,
    Models,
    NormName,
    Settings,
    SuiteName,
    chosen_suite,
    evaluation_options,
    with_budget,
)
from kwbench.cli.output import (
    command_line,
    console,
    print_diagnoses,
    print_json,
    print_plans,
    print_summaries,
    require_complete,
    summary_json,
)
from kwbench.cli.panels import ATTACK, OUTPUT, RUN, THREAT
from kwbench.errors import TimeIsUp, UsageError
from kwbench.imports import importing
from kwbench.report.drawing.picture import KINDS, Picture, Style
from kwbench.threat import parse_threats

if TYPE_CHECKING:
    from rich.table import Table

    from kwbench.cli.executors import OpenExecutor
    from kwbench.evaluation.execution.timings import Timings
    from kwbench.evaluation.plan import Plan
    from kwbench.evaluation.request import Request
    from kwbench.evaluation.runner import Progress
    from kwbench.evaluation.studies.sweep import Sweep
    from kwbench.record.store import Store
    from kwbench.record.summary import Summary
    from kwbench.verdict import Verdict

app = typer.Typer()
PANEL = "Measure"


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench evaluate resnet18-kwta0.1 --attack pgd,square --n 100")
@evaluation_options()
@executor_options()
def evaluate(
    models: Models,
    options: EvaluationOptions,
    execution: ExecutorOptions,
    attack: AttackNames = None,
    suite: SuiteName = None,
    settings: Settings = None,
    budget: Budget = None,
    threat: Annotated[
        str | None,
        typer.Option(
            metavar="NORM:RADIUS,...",
            help="Several threat models, such as linf:8/255,l2:0.5; A_rob is then also that of the worst case over all.",
            rich_help_panel=THREAT,
        ),
    ] = None,
    only_plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print what would run, and how long by the timings on record, and attack nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    stop_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Stop after 2h or 90m, and name what remains. Models without a complete evaluation come first, then those "
            "with the widest interval.",
            rich_help_panel=RUN,
        ),
    ] = None,
    timings: Annotated[
        bool,
        typer.Option(
            "--timings",
            help="Also print the wall seconds of each phase; in JSON as `timings`, the last element of a list of models.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Attack models and report their robust accuracy."""
    from kwbench.evaluation.execution.timings import IMPORTS, RECORD, REPORT, Timings, process_started

    clock = Timings(process_started())
    with clock.phase(*IMPORTS):
        if not execution.distributed:
            options.prepare()
        with importing():
            from kwbench.cli.progress import progress_display
            from kwbench.evaluation.plan import in_order_of_information
            from kwbench.evaluation.presence import presence
            from kwbench.record.joint import joint

        chosen = with_budget(chosen_suite(attack, suite, settings), budget)
        # One list of requests for each threat model.
        requests = [one.requests(models, chosen) for one in _under(options, threat)]
    with clock.phase(*RECORD):
        store = options.store()
        seconds = None if stop_after is None else _seconds_in(stop_after)
        if seconds is not None:
            order = in_order_of_information(requests[0], options.known())
            requests = [[under[position] for position in order] for under in requests]
    if only_plan:
        known = options.known()
        with execution.opened(options.threads) as open_executor:
            planned = evaluate_each(
                requests[0],
                lambda index: [_plan(under[index], known, options.time_limit, open_executor) for under in requests],
            )
        print_plans([plan for plans in planned.results for plan in plans], execution.price, as_json, planned.failures)
        planned.require_all()
        return
    with (
        progress_display() as show,
        presence(store, command_line(), len(requests[0])) as note,
        clock.phase(*RECORD),
        execution.opened(options.threads) as open_executor,
    ):
        run = _Run(store, _all_of(note, show), options.time_limit, open_executor, timings=clock, seconds=seconds)
        evaluated = evaluate_each(requests[0], lambda index: [run(under[index]) for under in requests])
    with clock.phase(*REPORT):
        joints = [joint(store, results) for results in evaluated.results] if threat is not None else []
        print_summaries(
            [summary for results in evaluated.results for summary in results],
            as_json,
            evaluated.failures,
            clock if timings else None,
            [whole for whole in joints if whole is not None],
        )
    evaluated.require_all()
    require_complete([summary for results in evaluated.results for summary in results])


def _under(options: EvaluationOptions, threat: str | None) -> list[EvaluationOptions]:
    """Return the options under each threat model of --threat; without it, as they are."""
    if threat is None:
        return [options]
    if options.norm is not None or options.eps is not None:
        raise UsageError("--threat: states norms and radii; leave --norm and --eps out")
    return [replace(options, norm=NormName(one.norm), eps=one.eps_text) for one in parse_threats(threat)]


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench diagnose resnet18-kwta0.1 --protocol pgd")
@evaluation_options(without=("keep_adversarials",))
@executor_options()
def diagnose(
    models: Models,
    options: EvaluationOptions,
    execution: ExecutorOptions,
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="The suite whose robust accuracy is judged.",
            autocompletion=complete_suites,
            rich_help_panel=ATTACK,
        ),
    ] = "strong",
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="SUITE|ATTACKS",
            help="The protocol to compare it with; default: the suite's own.",
            autocompletion=complete_suites,
            rich_help_panel=ATTACK,
        ),
    ] = None,
    settings: Settings = None,
    budget: Budget = None,
    as_json: Json = False,
) -> None:
    """Judge whether a robust accuracy can be believed: evaluate, check the model and the record, and reach a verdict."""
    if not execution.distributed:
        options.prepare()
    with importing():
        from kwbench.cli.progress import progress_display
        from kwbench.evaluation.presence import presence
        from kwbench.evaluation.protocol import protocol_suite, verdict_against

    rival = [] if protocol is None else options.requests(models, protocol_suite(protocol))
    judged = options.requests(models, replace(with_budget(chosen_suite(None, suite, settings), budget), diagnose=True))
    store = options.store()
    with (
        progress_display() as show,
        presence(store, command_line(), len(judged)) as note,
        execution.opened(options.threads) as open_executor,
    ):
        run = _Run(store, _all_of(note, show), options.time_limit, open_executor)

        def judge(index: int) -> "tuple[Summary, Verdict]":
            against = run(rival[index]) if rival else None
            if against is not None:
                require_complete([against])
            summary = run(judged[index], thoroughly=True)
            return summary, verdict_against(summary, protocol, against)

        evaluated = evaluate_each(judged, judge)
    print_diagnoses(evaluated.results, as_json, evaluated.failures)
    evaluated.require_all()
    require_complete([summary for summary, _ in evaluated.results])


@dataclass(frozen=True)
class _Run:
    """Evaluates requests of one command."""

    store: "Store"
    show: "Callable[[Progress], None]"
    time_limit: float | None
    open_executor: "OpenExecutor"
    timings: "Timings | None" = None
    # What all evaluations together may take, from when this was made.
    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)

    def __call__(self, request: "Request", *, thoroughly: bool = False) -> "Summary":
        """Evaluate a request and return its summary; `thoroughly` as in `runner.evaluate`. Raises TimeIsUp."""
        with importing():
            from kwbench.evaluation.runner import evaluate as run
            from kwbench.record.summaries import summaries

        self._require_time()
        evaluation = run(
            request,
            self.store,
            self._show,
            command=command_line(),
            time_limit=self.time_limit,
            thoroughly=thoroughly,
            timings=self.timings,
            open_executor=self.open_executor,
        )
        return summaries(self.store, [evaluation])[0]

    def _show(self, progress: "Progress") -> None:
        self.show(progress)
        if progress.done_in_all < progress.rows_in_all:
            self._require_time()

    def _require_time(self) -> None:
        if self.seconds is not None and time.monotonic() - self.started >= self.seconds:
            raise TimeIsUp("the time is up; the same command continues")


def _seconds_in(text: str) -> float:
    """Return the seconds of a time such as 2h, 90m, 1h30m or 45s. Raises UsageError."""
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    seconds = (
        0.0 if parts is None else sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True))
    )
    if not seconds:
        raise UsageError(f"--stop-after {text}: write a time such as 2h, 90m, 1h30m or 45s")
    return seconds


def _all_of(*shows: "Callable[[Progress], None]") -> "Callable[[Progress], None]":
    def show(progress: "Progress") -> None:
        for one in shows:
            one(progress)

    return show


def _plan(request: "Request", store: "Store", time_limit: float | None, open_executor: "OpenExecutor") -> "Plan":
    """Load a model and return what its evaluation would take."""
    from kwbench.evaluation.fingerprint import told_apart
    from kwbench.evaluation.plan import plan

    executor = open_executor(request, time_limit)
    try:
        return plan(request, told_apart(executor.facts, store), store)
    finally:
        executor.close()


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench sweep resnet18-relu-at --over eps=4/255,8/255 --figure eps.pdf")
@evaluation_options(without=("checkpoint", "checkpoint_key", "strip_prefix", "keep_adversarials"))
def sweep(
    models: Models,
    options: EvaluationOptions,
    over: Annotated[
        str,
        typer.Option(
            metavar="NAME=VALUES",
            help="What to vary: eps=1/255,4/255,8/255 or pgd.steps=1,10,100; or eps alone, for every radius from one run of "
            "minimum-norm attacks.",
            rich_help_panel=ATTACK,
        ),
    ],
    attack: AttackNames = None,
    suite: SuiteName = None,
    settings: Settings = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure", "--svg", metavar="FILE", help="Also draw the curves: .svg, .pdf or .png.", rich_help_panel=OUTPUT
        ),
    ] = None,
    style: FigureStyle = Style.SCREEN,
    as_json: Json = False,
) -> None:
    """Measure robust accuracy against the radius, or against a parameter of an attack such as its steps.

    Default: of pgd, and for every radius of deepfool and cw.
    """
    options.prepare()
    with importing():
        from kwbench.cli.progress import progress_display
        from kwbench.evaluation.studies.sweep import parse_sweep, run_sweep, sweep_picture

    plan = parse_sweep(over)
    kind = figure.suffix.removeprefix(".").lower() if figure is not None else ""
    if figure is not None and kind not in KINDS:
        raise UsageError(f"--figure {figure}: the name ends with .svg, .pdf or .png")
    if plan.over_eps and plan.values and options.eps is not None:
        raise UsageError("--eps: --over changes it")
    chosen = chosen_suite(attack, suite, settings, default="pgd" if plan.values else "deepfool,cw")
    if not plan.values:
        _every_radius(options.requests(models, chosen), options, figure, style, as_json)
        return
    requests = [
        (replace(options, eps=value) if plan.over_eps else options).requests(models, plan.suite(chosen, value))
        for value in plan.values
    ]
    store = options.store()
    with progress_display() as show:
        evaluated = evaluate_each(
            requests[0],
            lambda index: run_sweep(
                plan,
                [[at_value[index]] for at_value in requests],
                chosen.name,
                store,
                show,
                command=command_line(),
                time_limit=options.time_limit,
            )[0],
        )
    curves = evaluated.results
    if curves:
        _show_curves(
            plan.quantity,
            lambda: sweep_picture(plan, curves, chosen.name),
            lambda: _sweep_table(plan, curves),
            lambda: [_curve_json(plan.values, curve) for curve in curves],
            figure,
            style,
            as_json,
        )
    evaluated.require_all()
    require_complete([point for curve in curves for point in curve])


def _every_radius(
    requests: "Sequence[Request]", options: EvaluationOptions, figure: Path | None, style: Style, as_json: bool
) -> None:
    """Evaluate each model once by minimum-norm attacks, and show its robust accuracy at every radius."""
    with importing():
        from kwbench.cli.progress import progress_display
        from kwbench.record.minimum_norm import distance_curve, distance_curve_json
        from kwbench.report.figures.series import distance_curves
        from kwbench.report.terminal import distance_table

    store = options.store()
    with progress_display() as show, ExecutorOptions().opened(options.threads) as open_executor:
        run = _Run(store, show, options.time_limit, open_executor)
        evaluated = evaluate_each(requests, lambda index: run(requests[index]))
    curves = [distance_curve(store, summary) for summary in evaluated.results]
    if curves:
        _show_curves(
            "eps",
            lambda: distance_curves(requests[0].suite.name, curves),
            lambda: distance_table(curves),
            lambda: [{**summary_json(curve.summary), **distance_curve_json(curve)} for curve in curves],
            figure,
            style,
            as_json,
        )
    evaluated.require_all()
    require_complete(evaluated.results)


def _show_curves(
    over: str,
    picture: Callable[[], Picture],
    table: "Callable[[], Table]",
    rows: Callable[[], list[dict[str, Any]]],
    figure: Path | None,
    style: Style,
    as_json: bool,
) -> None:
    """Draw curves into the file `figure`, if there is one, and print them as a table, or as JSON."""
    if figure is not None:
        from kwbench.files import write_whole

        kind = figure.suffix.removeprefix(".").lower()
        write_whole(figure, picture().files(style, [kind])[kind])
    if as_json:
        print_json({"over": over, "figure": None if figure is None else str(figure), "curves": rows()})
    else:
        console().print(table())


def _sweep_table(plan: "Sweep", curves: "Sequence[Sequence[Summary]]") -> "Table":
    from kwbench.report.terminal import sweep_table

    return sweep_table(plan.quantity, plan.values, curves)


def _curve_json(values: "Sequence[str]", curve: "Sequence[Summary]") -> dict[str, Any]:
    points = [{"value": value, **summary_json(point)} for value, point in zip(values, curve, strict=True)]
    return {"model": curve[0].model, "points": points}
