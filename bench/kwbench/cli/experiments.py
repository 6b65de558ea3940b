"""Commands that measure more than robust accuracy: experiment, landscape and sparsity."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kwbench.cli.completion import complete_experiments, complete_models
from kwbench.cli.options import (
    AttackNames,
    EvaluationOptions,
    FigureFolder,
    FigureStyle,
    Json,
    Models,
    Settings,
    SuiteName,
    chosen_suite,
    evaluation_options,
    names_in,
)
from kwbench.cli.output import (
    command_line,
    print_json,
    print_measurements,
    print_summary_tables,
    progress_line,
    require_complete,
    summary_json,
)
from kwbench.cli.panels import DATA, OUTPUT, RUN
from kwbench.errors import UsageError
from kwbench.imports import importing
from kwbench.report.drawing.picture import Style

if TYPE_CHECKING:
    from kwbench.config.registry import Paper
    from kwbench.config.suite import Suite
    from kwbench.evaluation.studies.sparsity import Variant
    from kwbench.record.measurement import Measurement
    from kwbench.training import Epoch

app = typer.Typer()
PANEL = "Experiments"

# The experiment that reads a curve which `kwbench train` wrote; it runs no model.
_LEARNING = "learning"


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench experiment logits resnet18-kwta0.1 --images 0,7 --output figures")
@evaluation_options(without=("checkpoint", "checkpoint_key", "strip_prefix", "keep_adversarials"))
def experiment(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="landscape, logits, patterns, answers, weights, learning, fit or layers.",
            autocompletion=complete_experiments,
        ),
    ],
    options: EvaluationOptions,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="The models to examine; fit and layers make their own.", autocompletion=complete_models
        ),
    ] = None,
    attack: AttackNames = None,
    suite: SuiteName = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PARAMETER=VALUE",
            help="Set a parameter of the experiment, such as points=100. May be repeated.",
            rich_help_panel=RUN,
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="Positions of images in the split, such as 0,7.", rich_help_panel=DATA),
    ] = None,
    output: FigureFolder = None,
    style: FigureStyle = Style.SCREEN,
    as_json: Json = False,
) -> None:
    """Run an experiment and put it on record; `kwbench report --figures` draws it.

    answers: probabilities of the true class under attacks (default: fgsm,pgd,cw)
    fit: a network fitted to a function of one variable
    landscape: the loss around an image
    layers: theorem 1 of xiao2020 on random layers
    learning: the loss during training
    logits: the logits along PGD
    patterns: how far an input moves until activations switch, and the jump there
    weights: the loss as weights and images move
    """
    with importing():
        from kwbench.evaluation.studies.experiment import parameters_in
        from kwbench.experiments import SYNTHETIC

    chosen, parameters = list(models or []), parameters_in(settings or [])
    if (name in SYNTHETIC) == bool(chosen):
        raise UsageError(f"experiment {name}: " + ("makes its own network, and takes no model" if chosen else "name a model"))
    if name == _LEARNING:
        measured = _learning_curves(chosen, parameters, options)
    elif name in SYNTHETIC:
        measured = [_synthetic(name, parameters, options)]
    else:
        asked = chosen_suite(attack, suite, default="fgsm,pgd,cw") if name == "answers" else chosen_suite("noop", None)
        measured = _on_models(name, parameters, chosen, asked, images, options)
    print_measurements(measured, output, style, as_json)


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench landscape resnet18-kwta0.1 --images 0,7 --output figures")
@evaluation_options(
    without=(
        "checkpoint",
        "checkpoint_key",
        "strip_prefix",
        "prediction",
        "n",
        "norm",
        "tile",
        "precision",
        "time_limit",
        "memory_limit",
        "keep_adversarials",
    ),
)
def landscape(
    models: Models,
    options: EvaluationOptions,
    radius: Annotated[
        str | None,
        typer.Option(
            help="Distance in each direction; default: 1.29 eps, which is 0.04 at 0.031 as in xiao2020.", rich_help_panel=RUN
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Points along each direction.", rich_help_panel=RUN)] = 50,
    images: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Positions of images in the split, such as 0,7.", rich_help_panel=DATA)
    ] = "0",
    output: FigureFolder = None,
    style: FigureStyle = Style.SCREEN,
    as_json: Json = False,
) -> None:
    """Measure the loss around an image, along its gradient and a random direction; drawn in 3-D and as a map."""
    with importing():
        from kwbench.evaluation.studies.experiment import parameters_in

    parameters = parameters_in([f"points={points}", *([f"radius={radius}"] if radius is not None else [])])
    measured = _on_models("landscape", parameters, models, chosen_suite("noop", None), images, options)
    print_measurements(measured, output, style, as_json)


def _learning_curves(models: Sequence[str], parameters: Mapping[str, Any], options: EvaluationOptions) -> "list[Measurement]":
    """Put the learning curves of models on record."""
    from kwbench.config.registry import read_registry
    from kwbench.evaluation.studies.learning import record_learning

    if parameters:
        raise UsageError("experiment learning: has no parameters")
    registry, store = read_registry(options.registry), options.store()
    return [record_learning(registry, model, store, command=command_line()) for model in models]


def _synthetic(name: str, parameters: Mapping[str, Any], options: EvaluationOptions) -> "Measurement":
    """Run an experiment that makes its own network."""
    from kwbench.evaluation.studies.experiment import synthesize
    from kwbench.experiments import build_experiment

    built = build_experiment(name, parameters)
    return synthesize(name, built, options.seed, options.store(), command=command_line())


def _on_models(
    name: str,
    parameters: Mapping[str, Any],
    models: Sequence[str],
    suite: "Suite",
    images: str | None,
    options: EvaluationOptions,
) -> "list[Measurement]":
    """Run an experiment on each model, on the images at these positions or else on the first ones."""
    from kwbench.evaluation.studies.experiment import measure
    from kwbench.experiments import build_experiment

    built = build_experiment(name, parameters)
    if images is not None and options.n is not None:
        raise UsageError("--images and --n: give one of them")
    positions = _positions(images) if images is not None else None
    n = max(positions) + 1 if positions is not None else options.n or built.default_images
    requests = replace(options, n=n).requests(models, suite)
    store, measured = options.store(), []
    for request in requests:
        progress_line(f"{name}: {request.model}")
        try:
            measured.append(
                measure(request, name, built, store, images=positions, command=command_line(), time_limit=options.time_limit)
            )
        except UsageError as failure:
            # --n was not typed: the largest position in --images determined it.
            raise UsageError(str(failure).replace(f"--n {n}:", f"--images {images}:", 1)) from None
    return measured


def _positions(text: str) -> list[int]:
    """Return the positions that --images lists. Raises UsageError unless they are different and not negative."""
    try:
        positions = [int(part) for part in text.split(",")]
    except ValueError:
        positions = []
    if not positions or min(positions) < 0 or len(set(positions)) < len(positions):
        raise UsageError(f"--images {text}: write different positions in the split, from 0 on, such as 0,7")
    return positions


@app.command(rich_help_panel=PANEL, epilog="Example: kwbench sparsity resnet18-kwta0.1 --gammas 0.2,0.1,0.05 --folder series")
@evaluation_options(
    without=(
        "checkpoint",
        "checkpoint_key",
        "strip_prefix",
        "prediction",
        "dataset",
        "time_limit",
        "memory_limit",
        "keep_adversarials",
    ),
)
def sparsity(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A k-WTA network of the registry whose entry has a recipe.", autocompletion=complete_models
        ),
    ],
    options: EvaluationOptions,
    gammas: Annotated[str, typer.Option(metavar="VALUES", help="The gammas, separated by commas.", rich_help_panel=RUN)],
    folder: Annotated[
        Path,
        typer.Option(
            help="Folder of the networks and their registry; networks in it are not trained again.", rich_help_panel=OUTPUT
        ),
    ],
    attack: AttackNames = None,
    suite: SuiteName = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train a k-WTA network at several gammas, directly and incrementally, and evaluate each; default attack: pgd.

    If it is interrupted, the same command continues.
    """
    with importing():
        from kwbench.cli.progress import progress_display
        from kwbench.config.registry import read_registry
        from kwbench.evaluation.studies.sparsity import evaluate_series, variants

    wanted = _fractions(gammas)
    models = read_registry(options.registry)
    short, entry = models.find(name)
    series, chosen = variants(short, entry, wanted), chosen_suite(attack, suite, settings, default="pgd")
    paper = models.paper_of(short)
    registry = _train(series, folder, options, {entry.paper: paper} if entry.paper and paper else {})
    requests = replace(options, registry=registry).requests([variant.name for variant in series], chosen)
    store = options.store()
    with progress_display() as show:
        results = evaluate_series(short, series, requests, store, show, command=command_line())
    if as_json:
        rows = [
            {"gamma": str(variant.gamma), "incremental": variant.incremental, **summary_json(result)}
            for variant, result in zip(series, results, strict=True)
        ]
        print_json({"model": short, "registry": str(registry), "networks": rows})
    else:
        print_summary_tables(results)
    require_complete(results)


def _fractions(gammas: str) -> list[Fraction]:
    """Return the gammas exactly as written. Raises UsageError for what is not a number, and if there is none."""
    from kwbench.threat import exact_fraction

    try:
        wanted = [exact_fraction(name) for name in names_in(gammas)]
    except ValueError as failure:
        raise UsageError(f"--gammas {gammas}: {failure}") from None
    if not wanted:
        raise UsageError("--gammas: give at least one")
    return wanted


def _train(series: "Sequence[Variant]", folder: Path, options: EvaluationOptions, papers: "Mapping[str, Paper]") -> Path:
    """Train what the folder does not hold yet, and return its registry."""
    from kwbench.data import load_dataset
    from kwbench.evaluation.studies.sparsity import train_series

    def show(title: str, epoch: "Epoch") -> None:
        progress_line(
            f"{title}: epoch {epoch.number}/{epoch.total}, loss {epoch.loss:.4f}, about {epoch.seconds_left:.0f} s left"
        )

    return train_series(
        series,
        folder,
        lambda name: load_dataset(
            name, data=options.data, classes=options.classes, data_dir=options.data_dir, download=options.download
        ),
        show,
        "cpu" if options.device == "auto" else options.device,
        papers,
    )
