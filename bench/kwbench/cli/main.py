"""The command line. Results go to stdout, progress and errors to stderr."""

# Heavy imports live inside the commands: --help must not wait for torch.
import json
import math
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kwbench.errors import CannotEvaluate, KwbenchError, UsageError
from kwbench.imports import importing

if TYPE_CHECKING:
    from rich.console import Console

    from kwbench.config.registry import ModelEntry, Recipe
    from kwbench.config.suite import Suite
    from kwbench.evaluation.evaluator import Request
    from kwbench.record.measurement import Measurement
    from kwbench.record.summary import Summary
    from kwbench.verdict import Verdict

app = typer.Typer(
    name="kwbench",
    help="The robust accuracy of image classifiers, measured as hard as the field knows how, with the evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Names of the registry, or path/to/file.py:factory for your own.")
]
Db = Annotated[str, typer.Option("--db", metavar="URL", help="Database: a SQLite file or a SQLAlchemy URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
RegistryFile = Annotated[Path | None, typer.Option("--registry", help="Registry file; default: registry.yaml here, or ours.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="LABEL.PARAMETER=VALUE", help="Set a parameter: pgd.steps=100.")
]
DataSetName = Annotated[str | None, typer.Option(help="Data set; default: the model's own.")]
Data = Annotated[Path | None, typer.Option(help="An npz file or a folder of images to evaluate on.")]
DataDir = Annotated[Path | None, typer.Option(help="Where torchvision's data sets lie; default: data.")]
Download = Annotated[bool, typer.Option("--download", help="Download the data set if it is missing.")]
CheckpointFile = Annotated[Path | None, typer.Option(help="Read the checkpoint from here; its hash still holds.")]
Count = Annotated[int | None, typer.Option("--n", help="Only the first N test images.")]
Eps = Annotated[str | None, typer.Option(help="Radius, such as 8/255 or 0.2.")]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
BatchSize = Annotated[int, typer.Option(help="Samples attacked together; changes no result.")]
Tile = Annotated[
    int, typer.Option(help="Samples in a forward pass, or in one of other size with the same bits; part of a run's identity.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads of torch; default: one for small images, else its own choice.")
]
PredictionText = Annotated[
    str | None,
    typer.Option(
        "--prediction",
        metavar="RULE",
        help="How a stochastic model answers: draw, mean_logits:10, vote:10 or frozen:0; default: what its entry says.",
    ),
]
TimeLimit = Annotated[
    float | None, typer.Option(help="For your own file: stop its process if a batch takes more seconds than this.")
]


class NormName(StrEnum):
    """The norms that --norm takes."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


class Split(StrEnum):
    """The splits that --split takes."""

    TEST = "test"
    VALIDATION = "validation"


Norm = Annotated[NormName | None, typer.Option(help="Norm of the radius.")]
SplitName = Annotated[Split, typer.Option(help="test, or validation to choose settings on.")]


@app.command()
def evaluate(
    models: Models,
    attack: Annotated[str | None, typer.Option(metavar="NAMES|all", help="Attacks by name, comma-separated, or all.")] = None,
    suite: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="A suite by name, or a YAML file.")] = None,
    settings: Settings = None,
    dataset: DataSetName = None,
    data: Data = None,
    data_dir: DataDir = None,
    download: Download = False,
    checkpoint: CheckpointFile = None,
    registry: RegistryFile = None,
    n: Count = None,
    split: SplitName = Split.TEST,
    eps: Eps = None,
    norm: Norm = None,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
    tile: Tile = 64,
    device: Device = "auto",
    threads: Threads = None,
    prediction: PredictionText = None,
    time_limit: TimeLimit = None,
    keep_adversarials: Annotated[
        bool, typer.Option("--keep-adversarials", help="Store the adversarial images that succeeded, too.")
    ] = False,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Attack models and say what their robust accuracy is."""
    _prepare(threads, db)
    with importing():
        from kwbench.cli.progress import showing
        from kwbench.config.suite import override, read_suite, suite_of
        from kwbench.evaluation.runner import evaluate as run
        from kwbench.record.store import Store
        from kwbench.record.summary import summaries

    if attack is not None and suite is not None:
        raise UsageError("--attack and --suite: give one of them; a suite file lists its attacks")
    chosen = read_suite(suite) if suite is not None else suite_of(_names("all" if attack is None else attack))
    requests = _requests(
        models,
        override(chosen, settings or []),
        registry=registry,
        checkpoint=checkpoint,
        dataset=dataset,
        data=data,
        data_dir=data_dir,
        download=download,
        n=n,
        split=split.value,
        norm=norm.value if norm is not None else None,
        eps=eps,
        seed=seed,
        batch_size=batch_size,
        tile=tile,
        device=device,
        threads=threads,
        prediction=prediction,
        keep_adversarials=keep_adversarials,
    )
    store = Store.open(db, create=True)
    with showing() as show:
        evaluations = [run(request, store, show, command=_command(), time_limit=time_limit) for request in requests]
    found = summaries(store, evaluations)
    if as_json:
        _print_json(_one_or_all([_standing_json(each) for each in found]))
    else:
        _print_tables(found)
    _require_complete(found)


@app.command()
def diagnose(
    models: Models,
    suite: Annotated[str, typer.Option(metavar="NAME|FILE", help="The suite whose number is to be judged.")] = "strong",
    protocol: Annotated[
        str | None,
        typer.Option(metavar="SUITE|ATTACKS", help="The protocol to hold against it; default: the suite's own."),
    ] = None,
    settings: Settings = None,
    dataset: DataSetName = None,
    data: Data = None,
    data_dir: DataDir = None,
    download: Download = False,
    checkpoint: CheckpointFile = None,
    registry: RegistryFile = None,
    n: Count = None,
    split: SplitName = Split.TEST,
    eps: Eps = None,
    norm: Norm = None,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
    tile: Tile = 64,
    device: Device = "auto",
    threads: Threads = None,
    prediction: PredictionText = None,
    time_limit: TimeLimit = None,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Say whether a robust accuracy can be believed: evaluate, check the model and the record, and reach a verdict."""
    _prepare(threads, db)
    with importing():
        from kwbench.cli.progress import showing
        from kwbench.config.suite import override, read_suite, suite_names, suite_of
        from kwbench.evaluation.runner import evaluate as run
        from kwbench.record.store import Store
        from kwbench.record.summary import summaries, to_json
        from kwbench.verdict import finding_json, verdict, verdict_json

    rival = None
    if protocol is not None:
        named = protocol in suite_names() or protocol.endswith((".yaml", ".yml"))
        rival = read_suite(protocol) if named else suite_of(_names(protocol))
    asked, judged = (
        _requests(
            models,
            each,
            registry=registry,
            checkpoint=checkpoint,
            dataset=dataset,
            data=data,
            data_dir=data_dir,
            download=download,
            n=n,
            split=split.value,
            norm=norm.value if norm is not None else None,
            eps=eps,
            seed=seed,
            batch_size=batch_size,
            tile=tile,
            device=device,
            threads=threads,
            prediction=prediction,
        )
        if each is not None
        else []
        for each in (rival, replace(override(read_suite(suite), settings or []), diagnose=True))
    )
    store = Store.open(db, create=True)
    with showing() as show:
        rivals = [run(request, store, show, command=_command(), time_limit=time_limit) for request in asked]
        evaluations = [
            run(request, store, show, command=_command(), time_limit=time_limit, thoroughly=True) for request in judged
        ]
    found, held = summaries(store, evaluations), summaries(store, rivals)
    _require_complete(held)
    verdicts = []
    for at, each in enumerate(found):
        other = held[at] if held else None
        values = None if other is None else other.robust_values
        if other is not None and (other.threat, other.index.tolist()) != (each.threat, each.index.tolist()):
            raise UsageError(
                f"--protocol {protocol}: attacks at {other.threat}, {suite} at {each.threat}; give --norm and --eps"
            )
        verdicts.append(verdict(each, each.findings, (str(protocol), values) if values is not None else None))
    if as_json:
        answers = [
            {**to_json(each), "verdict": verdict_json(one), "findings": [finding_json(finding) for finding in each.findings]}
            for each, one in zip(found, verdicts, strict=True)
        ]
        _print_json(_one_or_all(answers))
    else:
        _print_tables(found)
        _print_diagnoses(found, verdicts)
    _require_complete(found)


@app.command()
def sweep(
    models: Models,
    over: Annotated[
        str, typer.Option(metavar="WHAT=VALUES", help="What changes: eps=1/255,4/255,8/255 or pgd.steps=1,10,100.")
    ],
    attack: Annotated[str, typer.Option(metavar="NAMES|all", help="Attacks by name, comma-separated, or all.")] = "pgd",
    suite: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="A suite instead, by name or a YAML file.")] = None,
    settings: Settings = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the curves into an SVG file.")] = None,
    dataset: DataSetName = None,
    data: Data = None,
    data_dir: DataDir = None,
    download: Download = False,
    registry: RegistryFile = None,
    n: Count = None,
    split: SplitName = Split.TEST,
    eps: Eps = None,
    norm: Norm = None,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
    tile: Tile = 64,
    device: Device = "auto",
    threads: Threads = None,
    prediction: PredictionText = None,
    time_limit: TimeLimit = None,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Measure robust accuracy against the radius, or against a parameter of an attack such as its steps."""
    _prepare(threads, db)
    with importing():
        import numpy as np

        from kwbench.cli.progress import showing
        from kwbench.config.suite import override, read_suite, suite_of
        from kwbench.evaluation.runner import evaluate as run
        from kwbench.evaluation.series import record_series
        from kwbench.evaluation.sweep import parse_sweep
        from kwbench.files import write_whole
        from kwbench.record.store import Store
        from kwbench.record.summary import summaries
        from kwbench.report.curves import Curve, curves_svg

    asked = parse_sweep(over)
    if asked.of_eps and eps is not None:
        raise UsageError("--eps: --over changes it")
    chosen = override(read_suite(suite) if suite is not None else suite_of(_names(attack)), settings or [])
    requests = [
        _requests(
            models,
            asked.suite(chosen, value),
            registry=registry,
            checkpoint=None,
            dataset=dataset,
            data=data,
            data_dir=data_dir,
            download=download,
            n=n,
            split=split.value,
            norm=norm.value if norm is not None else None,
            eps=value if asked.of_eps else eps,
            seed=seed,
            batch_size=batch_size,
            tile=tile,
            device=device,
            threads=threads,
            prediction=prediction,
        )
        for value in asked.values
    ]
    store = Store.open(db, create=True)
    with showing() as show:
        evaluations = [
            run(request, store, show, command=_command(), time_limit=time_limit) for each in requests for request in each
        ]
    everything = summaries(store, evaluations)
    # By model, then by value.
    found = [everything[at :: len(models)] for at in range(len(models))]
    for each in found:
        record_series(
            store,
            "sweep",
            [one.evaluation for one in each],
            {"over": asked.what, "values": list(asked.values), "suite": chosen.name},
            {"place": np.array(asked.places)},
            model=each[0].model,
            command=_command(),
        )
    if svg is not None:
        first = found[0][0]
        where = f"{first.dataset}, {first.threat.norm if asked.of_eps else first.threat}, n = {first.n}"
        curves = []
        for each in found:
            points = list(zip(asked.places, (one.a_rob for one in each), strict=True))
            curves.append(Curve(each[0].model, ((0.0, each[0].a_std), *points) if asked.of_eps else tuple(points)))
        write_whole(svg, curves_svg(curves, f"{chosen.name}: {where}", asked.what))
    if as_json:
        _print_json(
            {
                "over": asked.what,
                "svg": None if svg is None else str(svg),
                "curves": [
                    {
                        "model": each[0].model,
                        "points": [
                            {"value": value, **_standing_json(one)} for value, one in zip(asked.values, each, strict=True)
                        ],
                    }
                    for each in found
                ],
            }
        )
    else:
        from kwbench.report.curves import sweep_table

        _console().print(sweep_table(asked.what, asked.values, found))
    _require_complete(everything)


@app.command()
def experiment(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="landscape, logits, patterns, answers, weights, learning, fit or layers.")
    ],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL...]", help="The models to look at; fit and layers make their own.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PARAMETER=VALUE", help="Set a parameter: points=100.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="The images to look at, by their place in the split: 0,7.")
    ] = None,
    attack: Annotated[
        str, typer.Option(metavar="NAMES|all", help="For answers: attacks by name, comma-separated, or all.")
    ] = "fgsm,pgd,cw",
    suite: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="For answers: a suite instead, by name or a YAML file.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also draw the figures into this folder, as SVG files.")] = None,
    dataset: DataSetName = None,
    data: Data = None,
    data_dir: DataDir = None,
    download: Download = False,
    registry: RegistryFile = None,
    n: Count = None,
    split: SplitName = Split.TEST,
    eps: Eps = None,
    norm: Norm = None,
    seed: Seed = 0,
    tile: Tile = 64,
    device: Device = "auto",
    threads: Threads = None,
    prediction: PredictionText = None,
    time_limit: TimeLimit = None,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Measure what no table shows, and put it on record; `kwbench report --figures` draws it.

    landscape: the loss around an image. logits: along PGD. patterns: how far an input moves before an activation pattern
    changes, and the jump there. answers: true-class probabilities and examples under attacks. weights: the loss as weights
    and images move. learning: the loss along training. fit: a function of one number. layers: theorem 1 of xiao2020, on
    random layers.
    """
    with importing():
        from kwbench.config.registry import read_registry
        from kwbench.config.suite import read_suite, suite_of
        from kwbench.evaluation.experiment import measure, parameters_in, synthesize
        from kwbench.evaluation.learning import record_learning
        from kwbench.experiments import SYNTHETIC, build_experiment
        from kwbench.record.store import Store

    chosen = list(models or [])
    if (name in SYNTHETIC) == bool(chosen):
        raise UsageError(f"experiment {name}: " + ("makes its own network, and takes no model" if chosen else "name a model"))
    parameters = parameters_in(settings or [])
    if name == "learning":
        if parameters:
            raise UsageError("experiment learning: has no parameters")
        store, found = Store.open(db, create=True), []
        known = read_registry(registry)
        for each in chosen:
            found.append(record_learning(known, each, store, command=_command()))
        _print_experiments(found, output, as_json)
        return
    built = build_experiment(name, parameters)
    if name in SYNTHETIC:
        measured = synthesize(name, built, seed, Store.open(db, create=True), command=_command())
        _print_experiments([measured], output, as_json)
        return
    if images is not None and n is not None:
        raise UsageError("--images and --n: give one of them")
    places = _places(images) if images is not None else None
    asked = (read_suite(suite) if suite is not None else suite_of(_names(attack))) if name == "answers" else suite_of(["noop"])
    requests = _requests(
        chosen,
        asked,
        registry=registry,
        checkpoint=None,
        dataset=dataset,
        data=data,
        data_dir=data_dir,
        download=download,
        n=max(places) + 1 if places is not None else n or built.usual,
        split=split.value,
        norm=norm.value if norm is not None else None,
        eps=eps,
        seed=seed,
        tile=tile,
        device=device,
        threads=threads,
        prediction=prediction,
    )
    store = Store.open(db, create=True)
    results = []
    for request in requests:
        print(f"{name}: {request.model}", file=sys.stderr, flush=True)
        try:
            results.append(measure(request, name, built, store, images=places, command=_command(), time_limit=time_limit))
        except UsageError as failure:
            if places is None:
                raise
            # Of the images that were asked for, the last says how many there must be.
            raise UsageError(str(failure).replace(f"--n {request.n}:", f"--images {images}:", 1)) from None
    _print_experiments(results, output, as_json)


@app.command()
def landscape(
    models: Models,
    radius: Annotated[
        str | None, typer.Option(help="How far each way; default: 1.29 eps, which is 0.04 at 0.031, as xiao2020 has it.")
    ] = None,
    points: Annotated[int, typer.Option(help="Points along each direction.")] = 50,
    images: Annotated[str, typer.Option(metavar="NUMBERS", help="The images, by their place in the split: 0,7.")] = "0",
    output: Annotated[Path | None, typer.Option(help="Also draw the figures into this folder, as SVG files.")] = None,
    dataset: DataSetName = None,
    data: Data = None,
    data_dir: DataDir = None,
    download: Download = False,
    registry: RegistryFile = None,
    split: SplitName = Split.TEST,
    eps: Eps = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Measure the loss around an image, along its gradient and a random direction; drawn in 3-D and as a map."""
    experiment(
        "landscape",
        models,
        settings=[f"points={points}", *([f"radius={radius}"] if radius is not None else [])],
        images=images,
        output=output,
        dataset=dataset,
        data=data,
        data_dir=data_dir,
        download=download,
        registry=registry,
        split=split,
        eps=eps,
        seed=seed,
        device=device,
        threads=threads,
        db=db,
        as_json=as_json,
    )


@app.command()
def sparsity(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A k-WTA network of the registry whose entry has a recipe.")],
    gammas: Annotated[str, typer.Option(metavar="VALUES", help="The gammas, comma-separated.")],
    folder: Annotated[Path, typer.Option(help="Where the networks and their registry go; what is there is not trained again.")],
    attack: Annotated[str, typer.Option(metavar="NAMES|all", help="Attacks by name, comma-separated, or all.")] = "pgd",
    suite: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="A suite instead, by name or a YAML file.")] = None,
    settings: Settings = None,
    data: Data = None,
    data_dir: DataDir = None,
    download: Download = False,
    registry: RegistryFile = None,
    n: Count = None,
    split: SplitName = Split.TEST,
    eps: Eps = None,
    norm: Norm = None,
    seed: Seed = 0,
    batch_size: BatchSize = 256,
    tile: Tile = 64,
    device: Device = "auto",
    threads: Threads = None,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Train a k-WTA network at several gammas, directly and incrementally, and measure each. It goes on where it was."""
    with importing():
        import numpy as np

        from kwbench.cli.progress import showing
        from kwbench.config.registry import read_registry
        from kwbench.config.suite import override, read_suite, suite_of
        from kwbench.data import load_dataset
        from kwbench.evaluation.runner import evaluate as run
        from kwbench.evaluation.series import record_series
        from kwbench.evaluation.sparsity import train_series, variants
        from kwbench.record.store import Store
        from kwbench.record.summary import summaries
        from kwbench.threat import exact_fraction
        from kwbench.training import Epoch

    try:
        wanted = [exact_fraction(each) for each in _names(gammas)]
    except ValueError as failure:
        raise UsageError(f"--gammas {gammas}: {failure}") from None
    if not wanted:
        raise UsageError("--gammas: give at least one")
    short, entry = read_registry(registry).find(name)
    series = variants(short, entry, wanted)
    chosen = override(read_suite(suite) if suite is not None else suite_of(_names(attack)), settings or [])

    def show_epoch(title: str, epoch: Epoch) -> None:
        print(
            f"{title}: epoch {epoch.number}/{epoch.total}, loss {epoch.loss:.4f}, about {epoch.seconds_left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    trained = train_series(
        series,
        folder,
        lambda dataset: load_dataset(dataset, data=data, data_dir=data_dir, download=download),
        show_epoch,
        "cpu" if device == "auto" else device,
    )
    requests = _requests(
        [each.name for each in series],
        chosen,
        registry=trained,
        checkpoint=None,
        dataset=None,
        data=data,
        data_dir=data_dir,
        download=download,
        n=n,
        split=split.value,
        norm=norm.value if norm is not None else None,
        eps=eps,
        seed=seed,
        batch_size=batch_size,
        tile=tile,
        device=device,
        threads=threads,
        prediction=None,
    )
    store = Store.open(db, create=True)
    with showing() as show:
        evaluations = [run(request, store, show, command=_command()) for request in requests]
    found = summaries(store, evaluations)
    record_series(
        store,
        "sparsity",
        evaluations,
        {"suite": chosen.name, "values": [str(each.gamma) for each in series]},
        {
            "gamma": np.array([float(each.gamma) for each in series]),
            "incremental": np.array([float(each.incremental) for each in series]),
        },
        model=short,
        command=_command(),
    )
    if as_json:
        rows = [
            {"gamma": str(each.gamma), "incremental": each.incremental, **_standing_json(one)}
            for each, one in zip(series, found, strict=True)
        ]
        _print_json({"model": short, "registry": str(trained), "networks": rows})
    else:
        _print_tables(found)
    _require_complete(found)


@app.command()
def report(
    html: Annotated[bool, typer.Option("--html", help="One self-contained page, index.html.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="leaderboard.md")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="results.csv")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="tables.tex")] = False,
    verdicts: Annotated[bool, typer.Option("--verdicts", help="verdicts.md: the verdicts with their evidence.")] = False,
    claims: Annotated[
        bool, typer.Option("--claims", help="claims.md and claims.html: the papers' claims beside ours.")
    ] = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="figures.html, and every figure as an SVG file in figures/.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("reports"),
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Write what is on record as tables, A_std, every attack, A_rob, and as figures."""
    with importing():
        from kwbench.record.store import Store
        from kwbench.report import write_report

    formats = {"html": html, "markdown": markdown, "csv": csv, "latex": latex, "verdicts": verdicts, "claims": claims}
    formats |= {"figures": figures}
    wanted = {name for name, chosen in formats.items() if chosen}
    written = write_report(Store.open(db), output, wanted or {"html"})
    if as_json:
        _print_json({"files": [str(path) for path in written]})
    else:
        for path in written:
            print(path)


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name of the registry whose entry has a recipe.")],
    registry: RegistryFile = None,
    output: Annotated[Path | None, typer.Option(help="Write the checkpoint here; default: where the entry says.")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Write the checkpoint's hash into the registry.")] = False,
    data: Annotated[Path | None, typer.Option(help="An npz file or a folder of images to train on.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the files of data sets lie; default: data.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A copy of the weights that the recipe starts from, as torchvision has it."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download data set and first weights if they are missing.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Train a model by the recipe in its entry. Stopped, however, the same command goes on where it was."""
    with importing():
        from kwbench.config.registry import dataset_of, pin_checkpoint, read_registry
        from kwbench.data import load_dataset
        from kwbench.model import find_device
        from kwbench.networks.converting import convert_pretrained
        from kwbench.training import Epoch, accuracy, progress_path, recipe_hash, save_checkpoint, write_curve
        from kwbench.training import train as run

    found = read_registry(registry)
    short, entry = found.find(name)
    if entry.recipe is None:
        raise UsageError(f"{short}: the entry has no recipe; add one to train it")
    on = find_device(device)
    where, recipe = output or found.checkpoint_path(short), recipe_hash(entry)
    start = None
    if entry.recipe.pretrained is not None:
        start = convert_pretrained(entry.recipe.pretrained, file=weights, download=download)
    dataset = load_dataset(entry.recipe.dataset or dataset_of(short), data=data, data_dir=data_dir, download=download)

    def show(epoch: Epoch) -> None:
        print(
            f"{short}: epoch {epoch.number}/{epoch.total} at {epoch.done:.0%}, loss {epoch.loss:.4f}, "
            f"accuracy {epoch.accuracy:.4f}, {epoch.images_per_second:.0f} images/s, about {epoch.seconds_left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    progress = progress_path(where)
    module = run(
        entry,
        dataset,
        show,
        str(on),
        progress=progress,
        pretrained=start,
        curve=lambda epochs: write_curve(where, recipe, epochs),
    )
    digest = save_checkpoint(module, where, entry.recipe.storage, {"recipe": recipe})
    if pin:
        pin_checkpoint(found, short, where, digest)
    progress.unlink(missing_ok=True)
    validation = accuracy(module, dataset.validation) if len(dataset.validation) else None
    if as_json:
        _print_json({"model": short, "checkpoint": str(where), "sha256": digest, "validation_accuracy": validation})
        return
    print(f"{where}\nsha256 {digest}")
    if validation is not None:
        print(f"accuracy on the {len(dataset.validation)} validation images {100 * validation:.1f} %")
    if not pin and (entry.checkpoint is None or entry.checkpoint.sha256 != digest):
        print("the registry pins another hash; --pin writes this one", file=sys.stderr)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="A name of the registry, or a .pt file of your own.")],
    output: Annotated[
        Path | None, typer.Argument(metavar="[OUTPUT]", help="Where to; needed for a file, else where the entry says.")
    ] = None,
    copy: Annotated[Path | None, typer.Option("--from", metavar="FILE", help="A copy of what the entry's address has.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch it from the entry's public address.")] = False,
    key: Annotated[str | None, typer.Option(help="For a file: where its state dict is, such as model_state_dict.")] = None,
    strip_prefix: Annotated[str, typer.Option(help="For a file: what to take off the keys, such as module.")] = "",
    registry: RegistryFile = None,
    as_json: Json = False,
) -> None:
    """Turn a published checkpoint, or a .pt file of your own, into safetensors, without running the code in it."""
    with importing():
        from kwbench.config.registry import read_registry
        from kwbench.networks.converting import convert_entry, convert_file

    if Path(source).suffix in (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl") or Path(source).is_file():
        if output is None:
            raise UsageError(f"{source}: name the file to write: kwbench convert {source} OUT.safetensors")
        if copy is not None or download:
            raise UsageError("--from and --download: for a model of the registry, not for a file")
        where, digest = output, convert_file(Path(source), output, key=key, strip_prefix=strip_prefix)
    else:
        if key is not None or strip_prefix:
            raise UsageError("--key and --strip-prefix: for a file; a model's entry says so itself")
        where, digest = convert_entry(read_registry(registry), source, output, file=copy, download=download)
    if as_json:
        _print_json({"checkpoint": str(where), "sha256": digest})
    else:
        print(f"{where}\nsha256 {digest}")


@app.command()
def models(registry: RegistryFile = None, as_json: Json = False) -> None:
    """List the models of the registry."""
    from kwbench.config.registry import dataset_of, read_registry

    found = read_registry(registry)
    rows = [
        {
            "model": name,
            "dataset": dataset_of(name),
            "architecture": f"{entry.architecture.name} {_in_words(dict(entry.architecture.parameters))}".strip(),
            "activation": entry.activation.name,
            "training": _training(entry),
            **_learned(entry.recipe, dataset_of(name), as_json),
            "description": entry.description,
        }
        for name, entry in found.entries.items()
    ]
    _print_rows(rows, as_json)


@app.command()
def attacks(as_json: Json = False) -> None:
    """List the attacks with their parameters and defaults."""
    from kwbench.attacks import ATTACKS, default_parameters

    _print_rows(
        [
            {
                "attack": name,
                "norms": " ".join(sorted(kind.norms)),
                "parameters": default_parameters(name) if as_json else _in_words(default_parameters(name)),
            }
            for name, kind in ATTACKS.items()
        ],
        as_json,
    )


@app.command()
def suites(as_json: Json = False) -> None:
    """List the suites that come with kwbench."""
    from kwbench.config.suite import read_suite, suite_names

    found = [read_suite(name) for name in suite_names()]
    _print_rows(
        [
            {"suite": each.name, "attacks": " ".join(attack.label for attack in each.attacks), "description": each.description}
            for each in found
        ],
        as_json,
    )


@app.command()
def claims(
    paper: Annotated[str | None, typer.Option(metavar="NAME", help="Only this paper's.")] = None,
    lint: Annotated[bool, typer.Option("--lint", help="Only what cannot be true, and what could not have worked.")] = False,
    registry: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the papers' networks at full size, as a registry to train from.")
    ] = None,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Set the papers' claims beside what is on record, or say what is wrong with them."""
    with importing():
        from kwbench.claims import PAPERS, claims_json, comparisons, full_size_entries, full_size_registry, read_claims
        from kwbench.claims import lint as run_lint
        from kwbench.config.registry import read_registry
        from kwbench.errors import did_you_mean
        from kwbench.files import write_whole
        from kwbench.record.store import Store

    if registry is not None:
        if not registry.exists():
            write_whole(registry, full_size_registry())
        elif not read_registry(registry).entries.keys() >= full_size_entries().keys():
            raise UsageError(f"{registry}: is there already, without the papers' networks; nothing is overwritten")
        print(registry)
        return
    if paper is not None and paper not in PAPERS:
        raise UsageError(f"--paper {paper}: unknown; {did_you_mean(paper, PAPERS)}")
    wanted = [each for each in read_claims() if paper in (None, each.paper)]
    if lint:
        remarks = run_lint(wanted)
        rows = [
            {"rule": each.rule, "kind": each.kind, "statement": each.statement, "cells": [claim.name for claim in each.claims]}
            for each in remarks
        ]
        _print_rows(rows if as_json else [{**row, "cells": f"{len(row['cells'])} cells"} for row in rows], as_json)
        return
    # Without a record there is nothing to set beside the claims, but they can still be listed.
    store = Store.open(db) if "://" in db or Path(db).exists() else None
    found = comparisons(wanted, store)
    if as_json:
        _print_json(claims_json(found))
        return
    from kwbench.report.claims import claims_table

    _console().print(claims_table(found))


@app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name as in the tables.")],
    failures: Annotated[bool, typer.Option("--failures", help="Only the rows that are invalid or errors.")] = False,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Show what is on record about a model: its newest evaluation, and the rows without a truthful answer."""
    with importing():
        from kwbench.errors import did_you_mean
        from kwbench.record.store import Store
        from kwbench.record.summary import summaries

    store = Store.open(db)
    everything = store.evaluations()
    mine = sorted((each for each in everything if each.spec.model == model), key=lambda each: (each.asked, each.id))
    if not mine:
        raise UsageError(f"{db}: nothing on record about {model!r}; {did_you_mean(model, {e.spec.model for e in everything})}")
    (found,) = summaries(store, mine[-1:])
    rows = [
        {"attack": label, "index": row.index, "sample": row.sample, "status": str(row.status), "note": row.note}
        for label, attack_run in mine[-1].attack_runs.items()
        for row in store.outcomes(attack_run)
        if str(row.status) in ("invalid", "error") or row.note
    ]
    if as_json:
        _print_json({**_standing_json(found), "created": mine[-1].created, "spec": mine[-1].spec.spec, "rows": rows})
        return
    if not failures:
        _print_tables([found])
    _print_rows(rows, as_json=False)


@app.command()
def check(
    baseline: Annotated[Path, typer.Option(metavar="FILE", help="What was accepted before; --update writes it.")],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL...]", help="Only these; default: all of the baseline.")
    ] = None,
    max_drop: Annotated[float, typer.Option(help="Points of robust accuracy that may be lost.")] = 1.0,
    alpha: Annotated[float, typer.Option(help="Level of the paired test.")] = 0.01,
    update: Annotated[bool, typer.Option("--update", help="Write the newest results into the baseline.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Also append Markdown, as GITHUB_STEP_SUMMARY wants it.")] = None,
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Compare the newest results with a baseline. Exit code 1: less robust; 3: cannot tell; 0: fine."""
    with importing():
        from kwbench.record.store import Store
        from kwbench.regression.regression import append_summary, check_json, markdown_summary, write_junit
        from kwbench.regression.regression import check as run
        from kwbench.regression.regression import update as write_baseline

    store = Store.open(db)
    if update:
        written = write_baseline(store, baseline, models)
        if as_json:
            _print_json({"baseline": str(baseline), "models": written})
        else:
            print(f"{baseline}: {', '.join(written)}")
        return
    result = run(store, baseline, max_drop=max_drop, alpha=alpha, models=models)
    if junit is not None:
        write_junit(result, junit)
    if summary is not None:
        append_summary(result, summary)
    if as_json:
        _print_json(check_json(result))
    else:
        print(markdown_summary(result))
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A")],
    second: Annotated[str, typer.Argument(metavar="B")],
    db: Db = "results.db",
    as_json: Json = False,
) -> None:
    """Compare two models on the same samples, with the paired test."""
    with importing():
        from kwbench.record.store import Store
        from kwbench.regression.regression import compare as run
        from kwbench.regression.regression import comparison_json

    found = run(Store.open(db), first, second)
    if as_json:
        _print_json(comparison_json(found))
        return
    from kwbench.cli.progress import printable

    for each in found:
        spec = each.first.evaluation.spec
        names = f"{printable(spec.model)} - {printable(each.second.model)}"
        print(f"{names}: {printable(spec.dataset)}, {printable(spec.suite)}, {spec.threat}, n = {spec.n}")
        for name, difference, test in (
            ("A_std", each.a_std_difference, each.a_std),
            ("A_rob", each.a_rob_difference, each.a_rob),
        ):
            print(
                f"  {name}: {100 * difference.value:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}], "
                f"p = {test.p:.3g} ({test.method}, n = {test.n})"
            )


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Where to.")] = Path()) -> None:
    """Put a registry, a suite and a CI workflow to start from into a folder; nothing that is there is overwritten."""
    from importlib.resources import files

    source = files("kwbench") / "config" / "project"
    targets = {
        "registry.yaml": source / "registry.yaml",
        "suite.yaml": source / "suite.yaml",
        ".github/workflows/robustness.yml": files("kwbench") / "config" / "project" / "github-actions.yml",
    }
    for name in targets:
        path = folder / name
        if path.exists():
            raise UsageError(f"{path}: is there already; kwbench init overwrites nothing")
    for name, template in targets.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
        print(path)


@app.command()
def doctor(db: Db = "results.db", as_json: Json = False) -> None:
    """Say what is installed, what is wrong, and how to mend it."""
    from dataclasses import asdict

    from kwbench.cli.doctor import examine

    findings = examine(db)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = {"ok": "ok  ", "note": "note", "problem": "BAD "}[finding.level]
            print(f"{mark} {finding.subject}: {finding.found}" + (f"\n     -> {finding.remedy}" if finding.remedy else ""))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(3)


def _requests(models: list[str], suite: "Suite", *, prediction: str | None, **options: Any) -> list["Request"]:
    from kwbench.config.registry import prediction_rule, read_registry
    from kwbench.evaluation.evaluator import Request
    from kwbench.networks.loading import is_file_model

    if options["checkpoint"] is not None and len(models) > 1:
        raise UsageError("--checkpoint: one file cannot serve several models")
    if named := [model for model in models if not is_file_model(model)]:
        known = read_registry(options["registry"])
        for model in named:
            known.find(model)  # the last one's name is worth checking before the first one's hours
    rule = prediction_rule(prediction) if prediction is not None else None
    requests = [Request(model=model, suite=suite, prediction=rule, **options) for model in models]
    return [replace(each, suite=suite.on(each.dataset_name)) for each in requests]


def _prepare(threads: int | None, db: str) -> None:
    """Let a second process import what evaluations need while this one does; a record that is there may have all of them."""
    from kwbench.evaluation.processes import prepare
    from kwbench.files import record_file

    file = record_file(db)
    if threads != 1 and file is not None and not file.exists():
        prepare("kwbench.evaluation.evaluator")


def _places(text: str) -> list[int]:
    """Positions in a split, as --images names them."""
    try:
        places = [int(each) for each in text.split(",")]
    except ValueError:
        places = []
    if not places or min(places) < 0 or len(set(places)) < len(places):
        raise UsageError(f"--images {text}: write different positions in the split, from 0 on, such as 0,7")
    return places


def _print_experiments(found: Sequence["Measurement"], output: Path | None, as_json: bool) -> None:
    """What was measured, as JSON in full, and where it was drawn."""
    from kwbench.cli.progress import printable
    from kwbench.files import write_whole
    from kwbench.report.figures import figure_files, figures

    drawn = figure_files(figures(found, [], [])) if output is not None else {}
    written = []
    for name, svg in drawn.items():
        assert output is not None
        written.append(output / Path(name).name)
        write_whole(written[-1], svg)
    if as_json:
        results = [
            {
                "experiment": each.experiment,
                "model": each.model,
                "dataset": each.dataset,
                "run": each.identity,
                "spec": each.spec,
                "arrays": {name: _finite(array.tolist()) for name, array in each.arrays.items()},
            }
            for each in found
        ]
        _print_json({"files": [str(path) for path in written], "results": results})
        return
    for each in found:
        print(f"{each.experiment} {printable(each.model)}: on record, run {each.identity[:12]}".replace("  ", " "))
    for path in written:
        print(path)
    if not written:
        print("kwbench report --figures draws it", file=sys.stderr)


def _finite(value: Any) -> Any:
    """Nested lists with None for what JSON has no number for."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None


def _command() -> str:
    return shlex.join(["kwbench", *sys.argv[1:]])


def _standing_json(standing: "Summary") -> dict[str, Any]:
    from kwbench.record.summary import to_json
    from kwbench.verdict import verdict_json, verdict_on_record

    return {**to_json(standing), "verdict": verdict_json(verdict_on_record(standing))}


def _one_or_all(answers: list[dict[str, Any]]) -> Any:
    return answers[0] if len(answers) == 1 else answers


def _require_complete(found: Sequence["Summary"]) -> None:
    if not all(each.complete for each in found):
        raise CannotEvaluate("some rows are invalid or errors, so there is no robust accuracy; `kwbench show MODEL` names them")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _training(entry: "ModelEntry") -> str:
    if entry.recipe is not None:
        return entry.recipe.training
    return "published" if entry.checkpoint is not None and entry.checkpoint.source is not None else "none"


def _learned(recipe: "Recipe | None", dataset: str, as_json: bool) -> dict[str, Any]:
    """How long and on which images a model was trained, as far as its recipe says."""
    if recipe is None:
        return {"epochs": None, "images": None}
    images = recipe.dataset or dataset
    return {"epochs": recipe.epochs if as_json else f"{recipe.epochs} epochs", "images": images if as_json else f"on {images}"}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _print_tables(found: Sequence["Summary"]) -> None:
    from kwbench.report.terminal import text_table

    _console().print(text_table(found))


def _console() -> "Console":
    from rich.console import Console

    # Piped output has no width of its own; a table folded to 80 columns would be unreadable.
    return Console(width=None if sys.stdout.isatty() else 160)


def _print_diagnoses(found: Sequence["Summary"], verdicts: Sequence["Verdict"]) -> None:
    from rich.text import Text

    from kwbench.formatting import plain
    from kwbench.report.terminal import findings_table
    from kwbench.verdict import CAVEAT

    console = _console()
    for each, verdict in zip(found, verdicts, strict=True):
        console.print(Text(plain(each.model), "bold"))
        console.print(findings_table(each.findings))
        console.print(Text(f"{plain(each.model)}: {plain(verdict.sentence(), 2000)} {CAVEAT}\n"))


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    from kwbench.cli.progress import printable

    for row in rows:
        first, *others = (printable("" if value is None else str(value)) for value in row.values())
        print("  ".join([f"{first:24}", *(other for other in others if other)]))


def _in_words(parameters: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


def main() -> None:
    """The `kwbench` command."""
    warnings.filterwarnings("ignore")  # libraries' advice to programmers; ours would be errors or rows
    try:
        app(prog_name="kwbench")
    except KwbenchError as failure:
        from kwbench.cli.progress import printable

        print(f"kwbench: {printable(str(failure))}", file=sys.stderr)
        raise SystemExit(failure.exit_code) from None
    except SystemExit as end:
        if end.code == 130:  # what Typer makes of Ctrl-C
            print("kwbench: interrupted; the same command continues", file=sys.stderr)
        raise
