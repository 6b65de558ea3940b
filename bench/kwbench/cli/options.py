"""The options that several commands share, each defined once, and what they mean together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kwbench.cli.completion import complete_attacks, complete_datasets, complete_models, complete_suites
from kwbench.cli.panels import ATTACK, DATA, MODEL, OUTPUT, RUN, THREAT, options_of
from kwbench.cli.stores import open_store
from kwbench.errors import UsageError
from kwbench.imports import importing
from kwbench.report.drawing.picture import Style

if TYPE_CHECKING:
    from kwbench.config.registry import ModelEntry
    from kwbench.config.suite import Suite
    from kwbench.evaluation.request import Request
    from kwbench.record.store import Store


class NormName(StrEnum):
    """The norms that --norm accepts."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


class Split(StrEnum):
    """The splits that --split accepts."""

    TEST = "test"
    VALIDATION = "validation"


class PrecisionName(StrEnum):
    """The precisions that --precision accepts."""

    AUTO = "auto"
    FLOAT32 = "float32"


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="Names in the registry, or path/to/file.py:factory for a model of your own, perhaps with arguments: "
        "'net.py:net(depth=28)'.",
        autocompletion=complete_models,
    ),
]
AttackNames = Annotated[
    str | None,
    typer.Option(
        "--attack",
        metavar="NAMES|all",
        help="Attacks by name, separated by commas, or all.",
        autocompletion=complete_attacks,
        rich_help_panel=ATTACK,
    ),
]
SuiteName = Annotated[
    str | None,
    typer.Option(
        "--suite",
        metavar="NAME|FILE",
        help="A suite of attacks instead, by name or as a YAML file.",
        autocompletion=complete_suites,
        rich_help_panel=ATTACK,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="LABEL.PARAMETER=VALUE",
        help="Set a parameter of an attack, such as pgd.steps=100. May be repeated.",
        rich_help_panel=ATTACK,
    ),
]
RegistryFile = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        metavar="FILE",
        help="Registry of models; default: ./registry.yaml if it exists, and the models that come with kwbench.",
        rich_help_panel=MODEL,
    ),
]
DataFile = Annotated[
    Path | None,
    typer.Option("--data", metavar="FILE|FOLDER", help="Your own images: npz or npy, or a folder.", rich_help_panel=DATA),
]
ClassesFile = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        metavar="FILE",
        help="The classes of a folder in the order of the model's outputs, one name a line or JSON; "
        "default: folders in natural order.",
        rich_help_panel=DATA,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="FOLDER", help="Folder of torchvision's data sets; default: data.", rich_help_panel=DATA
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch a missing data set, or weights of another library.", rich_help_panel=DATA),
]
Device = Annotated[
    str,
    typer.Option("--device", help="cpu, cuda, cuda:1, or auto: a GPU if there is one.", rich_help_panel=RUN),
]
Database = Annotated[
    str, typer.Option("--db", metavar="URL", help="Database: a SQLite file or a SQLAlchemy URL.", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.", rich_help_panel=OUTPUT)]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        min=0,
        metavar="SECONDS",
        help="Seconds an image for complete search and for certificates, about; 0: neither. Default: what the attacks take.",
        rich_help_panel=RUN,
    ),
]
FigureFolder = Annotated[
    Path | None,
    typer.Option(
        "--output", metavar="FOLDER", help="Also draw figures into this folder: SVG, PDF, PNG.", rich_help_panel=OUTPUT
    ),
]
FigureStyle = Annotated[
    Style,
    typer.Option(
        "--style",
        help="Of figures: screen, or paper (as wide as a column, 8 points, the title left to the caption).",
        rich_help_panel=OUTPUT,
    ),
]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The options of every command that evaluates models; `evaluation_options` adds them to a command."""

    registry: RegistryFile = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read the weights from this file. For a model of the registry its hash must match.",
            rich_help_panel=MODEL,
        ),
    ] = None
    checkpoint_key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Dotted key of the weights in the checkpoint.", rich_help_panel=MODEL),
    ] = None
    strip_prefix: Annotated[
        str,
        typer.Option(metavar="PREFIX", help="What names in the checkpoint begin with, such as module.", rich_help_panel=MODEL),
    ] = ""
    prediction: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="How a stochastic model predicts: draw, mean_logits:10, vote:10 or frozen:0; default: as its entry states.",
            rich_help_panel=MODEL,
        ),
    ] = None
    binary: Annotated[
        bool, typer.Option("--binary", help="Make two classes of the model's single logit.", rich_help_panel=MODEL)
    ] = False
    abstain_class: Annotated[
        int | None,
        typer.Option(metavar="K", help="The class by which the model abstains.", rich_help_panel=MODEL),
    ] = None
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Data set; default: the model's own.",
            autocompletion=complete_datasets,
            rich_help_panel=DATA,
        ),
    ] = None
    data: DataFile = None
    classes: ClassesFile = None
    resize: Annotated[
        int | None, typer.Option(help="Resize the shorter side of your images to this length.", rich_help_panel=DATA)
    ] = None
    center_crop: Annotated[
        int | None, typer.Option(help="Then cut a square of this side out of the centre.", rich_help_panel=DATA)
    ] = None
    keys: Annotated[
        str | None,
        typer.Option(metavar="IMAGES,LABELS", help="Names of the arrays or columns in your file.", rich_help_panel=DATA),
    ] = None
    severity: Annotated[
        int | None, typer.Option(help="From 1 to 5: the part of a file of CIFAR-10-C.", rich_help_panel=DATA)
    ] = None
    data_dir: DataDir = None
    download: Download = False
    n: Annotated[int | None, typer.Option("--n", help="Use only the first N images.", rich_help_panel=DATA)] = None
    split: Annotated[Split, typer.Option(help="test, or validation to choose settings on.", rich_help_panel=DATA)] = Split.TEST
    norm: Annotated[NormName | None, typer.Option(help="Norm of the perturbation.", rich_help_panel=THREAT)] = None
    eps: Annotated[
        str | None, typer.Option(metavar="RADIUS", help="Largest perturbation, such as 8/255 or 0.2.", rich_help_panel=THREAT)
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.", rich_help_panel=RUN)] = 0
    tile: Annotated[
        int | None,
        typer.Option(
            help="Samples in a forward pass, or in one of another size that gives the same bits. Part of a run's identity. "
            "Default: 64, and on a GPU larger tiles, chosen by trial once for each model and machine.",
            rich_help_panel=RUN,
        ),
    ] = None
    device: Device = "auto"
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of torch; default: one for small images, else torch's choice.", rich_help_panel=RUN),
    ] = None
    precision: Annotated[
        PrecisionName,
        typer.Option(
            help="Of searches. auto: attacks named one by one, and those whose suite says so, search in the fastest precision "
            "that does not mislead them. float32: all search in float32. Predictions count in float32 either way.",
            rich_help_panel=RUN,
        ),
    ] = PrecisionName.AUTO
    time_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="For a model of your own: stop its process if a batch takes longer.",
            rich_help_panel=RUN,
        ),
    ] = None
    memory_limit: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="For a model of your own, on Linux: stop its processes if they hold more memory. Default: what can be spared.",
            rich_help_panel=RUN,
        ),
    ] = None
    untrusted: Annotated[
        bool,
        typer.Option(
            "--untrusted",
            help="For a stranger's file: run its code in a confined process that gives only answers and gradients.",
            rich_help_panel=RUN,
        ),
    ] = False
    sandbox: Annotated[
        bool,
        typer.Option(
            "--sandbox",
            help="Like --untrusted, and its process sees no other files than it needs. Needs bubblewrap.",
            rich_help_panel=RUN,
        ),
    ] = False
    keep_adversarials: Annotated[
        bool,
        typer.Option("--keep-adversarials", help="Also store the adversarial examples that succeeded.", rich_help_panel=OUTPUT),
    ] = False
    db: Database = "results.db"

    def requests(self, models: Sequence[str], suite: "Suite") -> "list[Request]":
        """Return one request for each model, with the suite as it is on the model's data set.

        A pattern such as cifar10/* stands for the models of the registry that have a checkpoint and a name like it. Raises
        UsageError for an unknown model or rule, and for one checkpoint with several models.
        """
        with importing():
            from kwbench.config.prediction import parse_prediction_rule
            from kwbench.config.registry import read_registry
            from kwbench.data import DataForm
            from kwbench.evaluation.request import Request
            from kwbench.networks.adapters import is_adapted
            from kwbench.networks.user_names import is_file_model, require_model_name

        if any(_is_pattern(model) for model in models):
            models = _matching(models, read_registry(self.registry).entries)
        if self.checkpoint is not None and len(models) > 1:
            raise UsageError("--checkpoint: one file cannot serve several models")
        if self.checkpoint is None and (self.checkpoint_key is not None or self.strip_prefix):
            raise UsageError("--key, --strip-prefix: say how --checkpoint is read; name the file")
        if registered := [model for model in models if not (is_adapted(model) or is_file_model(model))]:
            registry = read_registry(self.registry)
            for model in registered:
                require_model_name(model)
                registry.find(model)  # an unknown last model must fail before hours are spent on the first
        confined = "--sandbox" if self.sandbox else "--untrusted" if self.untrusted else None
        if confined and registered:
            raise UsageError(f"{confined}: {registered[0]} is a model of the registry, which brings no code; leave it out")
        if confined and (adapted := [model for model in models if is_adapted(model)]):
            raise UsageError(f"{confined}: {adapted[0]} is built by its library; only files of code run confined")
        form = DataForm(self.resize, self.center_crop, _two_names(self.keys), self.severity)
        rule = parse_prediction_rule(self.prediction) if self.prediction is not None else None
        requests = [
            Request(
                model=model,
                suite=suite,
                registry=self.registry,
                checkpoint=self.checkpoint,
                checkpoint_key=self.checkpoint_key,
                strip_prefix=self.strip_prefix,
                dataset=self.dataset,
                data=self.data,
                classes=self.classes,
                form=form,
                data_dir=self.data_dir,
                download=self.download,
                split="validation" if self.split is Split.VALIDATION else "test",
                n=self.n,
                norm=self.norm.value if self.norm is not None else None,
                eps=self.eps,
                seed=self.seed,
                tile=self.tile,
                device=self.device,
                threads=self.threads,
                precision=self.precision.value,
                prediction=rule,
                binary=self.binary,
                abstain_class=self.abstain_class,
                untrusted=confined is not None,
                sandbox=self.sandbox,
                memory_limit=None if self.memory_limit is None else self.memory_limit * 1e9,
                keep_adversarials=self.keep_adversarials,
            )
            for model in models
        ]
        return [request.under(suite) for request in requests]

    def store(self) -> "Store":
        """Open the database. A missing one is created with the first result, so that an early failure leaves none behind."""
        return open_store(self.db, create=True, deferred=True)

    def known(self) -> "Store":
        """Open the database to read what is on record, which is nothing if it is missing; none is created."""
        from kwbench.files import record_file

        file = record_file(self.db)
        return open_store("sqlite://" if file is not None and not file.exists() else self.db, create=True)

    def prepare(self) -> None:
        """Start a second process that imports torch while this one does, unless the database may already hold all results."""
        from kwbench.evaluation.execution.processes import prepare
        from kwbench.files import record_file

        file = record_file(self.db)
        if self.threads != 1 and file is not None and not file.exists():
            prepare("kwbench.evaluation.execution.evaluator")


def _is_pattern(model: str) -> bool:
    return ("*" in model or "?" in model) and ":" not in model


def _matching(models: Sequence[str], entries: "Mapping[str, ModelEntry]") -> list[str]:
    """Return the models with each pattern replaced by the names that match it, each once. Raises UsageError if none does."""
    from kwbench.config.registry import dataset_of

    # A model of the default data set may be named with it or without.
    full = {name: f"{dataset_of(name)}/{name.rpartition('/')[2]}" for name, entry in entries.items() if entry.checkpoint}
    chosen: list[str] = []
    for model in models:
        matches = [name for name in full if fnmatchcase(name, model) or fnmatchcase(full[name], model)]
        if _is_pattern(model) and not matches:
            raise UsageError(f"{model}: matches no model of the registry that has a checkpoint; `kwbench models` lists them")
        chosen += matches if _is_pattern(model) else [model]
    return list(dict.fromkeys(chosen))


def evaluation_options(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of EvaluationOptions, except those named in `without`, which keep their defaults.

    The command receives them as one object, its parameter `options`. Options appear in the help panel by panel.
    """
    return options_of(EvaluationOptions, "options", without=without)


def chosen_suite(
    attack: str | None, suite: str | None, settings: Sequence[str] | None = None, *, default: str = "all"
) -> "Suite":
    """Return the suite that --attack or --suite names, with the parameters of --set; attacks `default` if neither is given."""
    from kwbench.config.suite import override, read_suite, suite_of

    if attack is not None and suite is not None:
        raise UsageError("--attack and --suite: give one of them; a suite file lists its attacks")
    chosen = read_suite(suite) if suite is not None else suite_of(names_in(default if attack is None else attack))
    return override(chosen, settings or [])


def with_budget(suite: "Suite", budget: float | None) -> "Suite":
    """Return the suite with so many nominal seconds an image for its complete search and its certificates."""
    from kwbench.config.suite import override

    if budget is None:
        return suite
    if suite.complete_search is None:
        raise UsageError(f"--budget: suite {suite.name!r} has no complete-search to spend it on; --suite strong has one")
    return override(suite, [f"{suite.complete_search.label}.effort={budget:g}"])


def _two_names(text: str | None) -> tuple[str, str] | None:
    names = names_in(text or "")
    if text is not None and len(names) != 2:
        raise UsageError(f"--keys {text}: write IMAGES,LABELS, such as images,labels")
    return (names[0], names[1]) if text is not None else None


def names_in(text: str) -> list[str]:
    """Return the names in a list separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
