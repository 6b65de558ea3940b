"""Commands about what can be evaluated and with what: models, attacks, suites, convert and train."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kwbench.cli.completion import complete_models
from kwbench.cli.options import DataDir, Device, Json, RegistryFile
from kwbench.cli.output import print_json, print_lines, print_table, progress_line
from kwbench.cli.panels import DATA, MODEL, OUTPUT
from kwbench.errors import UsageError
from kwbench.imports import importing

if TYPE_CHECKING:
    from torch import nn

    from kwbench.config.registry import ModelEntry, Registry
    from kwbench.data import DataSet
    from kwbench.training import Epoch

app = typer.Typer()
LISTS, CHECKPOINTS = "What there is", "Checkpoints"

# File names that `convert` takes for a checkpoint of your own, even if no such file exists.
_CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl")


@app.command(rich_help_panel=LISTS, epilog="Example: kwbench models --json")
def models(registry: RegistryFile = None, as_json: Json = False) -> None:
    """List the models of the registry."""
    from kwbench.config.registry import dataset_of, read_registry

    rows: list[dict[str, Any]] = []
    for name, entry in read_registry(registry).entries.items():
        recipe, dataset = entry.recipe, dataset_of(name)
        rows.append(
            {
                "model": name,
                "dataset": dataset,
                "architecture": f"{entry.architecture.name} {_in_words(dict(entry.architecture.parameters))}".strip(),
                "activation": entry.activation.name,
                "training": _training(entry),
                "epochs": recipe.epochs if recipe is not None else None,
                "images": (recipe.dataset or dataset) if recipe is not None else None,
                "description": entry.description,
            }
        )
    if as_json:
        print_json(rows)
    else:
        optional = ("images", "epochs", "architecture", "description", "dataset")
        print_table(rows, headings={"dataset": "data set", "images": "trained on"}, optional=optional)


def _training(entry: "ModelEntry") -> str:
    """Return how a model was trained, in one word."""
    if entry.recipe is not None:
        return entry.recipe.training
    return "published" if entry.checkpoint is not None and entry.checkpoint.source is not None else "none"


def _in_words(parameters: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


@app.command(rich_help_panel=LISTS, epilog="Example: kwbench attacks")
def attacks(as_json: Json = False) -> None:
    """List the attacks with their norms, and their parameters with the defaults."""
    with importing():
        from kwbench.attacks import ATTACKS, default_parameters

    rows: list[dict[str, Any]] = [
        {"attack": name, "norms": " ".join(sorted(kind.norms)), "parameters": default_parameters(name)}
        for name, kind in ATTACKS.items()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table([{**row, "parameters": _in_words(row["parameters"])} for row in rows])


@app.command(rich_help_panel=LISTS, epilog="Example: kwbench suites")
def suites(as_json: Json = False) -> None:
    """List the suites that come with kwbench."""
    from kwbench.config.suite import read_suite, suite_names

    rows = [
        {
            "suite": suite.name,
            "attacks": " ".join(attack.label for attack in suite.attacks),
            "description": suite.description,
        }
        for suite in map(read_suite, suite_names())
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows)


@app.command(rich_help_panel=CHECKPOINTS, epilog="Example: kwbench convert model.pt model.safetensors --strip-prefix module.")
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE", help="A name in the registry, or a .pt file of your own.", autocompletion=complete_models
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUTPUT", help="The file to write; required for a file, default for a model: as its entry states."
        ),
    ] = None,
    copy: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="A copy of the published file.", rich_help_panel=MODEL)
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the published file from the entry's address.", rich_help_panel=MODEL)
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="For a file: the key of its state dict, such as model_state_dict.", rich_help_panel=MODEL)
    ] = None,
    strip_prefix: Annotated[
        str, typer.Option(help="For a file: a prefix to remove from the keys, such as module.", rich_help_panel=MODEL)
    ] = "",
    registry: RegistryFile = None,
    as_json: Json = False,
) -> None:
    """Convert a published checkpoint, or a .pt file of your own, to safetensors without running the code in it."""
    with importing():
        from kwbench.config.registry import read_registry
        from kwbench.networks.converting import convert_entry, convert_file

    if Path(source).suffix in _CHECKPOINT_SUFFIXES or Path(source).is_file():
        if output is None:
            raise UsageError(f"{source}: name the file to write: kwbench convert {source} OUT.safetensors")
        if copy is not None or download:
            raise UsageError("--from and --download: for a model of the registry, not for a file")
        file, digest = output, convert_file(Path(source), output, key=key, strip_prefix=strip_prefix)
    else:
        if key is not None or strip_prefix:
            raise UsageError("--key and --strip-prefix: for a file; a model's entry states them itself")
        file, digest = convert_entry(read_registry(registry), source, output, file=copy, download=download)
    if as_json:
        print_json({"checkpoint": str(file), "sha256": digest})
    else:
        print_lines([file, f"sha256 {digest}"])


@app.command(rich_help_panel=CHECKPOINTS, epilog="Example: kwbench train resnet18-kwta0.1 --output mine.safetensors")
def train(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model of the registry whose entry has a recipe.", autocompletion=complete_models
        ),
    ],
    registry: RegistryFile = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE|FOLDER", help="Your own images to train on: an npz file or a folder.", rich_help_panel=DATA),
    ] = None,
    data_dir: DataDir = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A copy of torchvision's weights that the recipe starts from.", rich_help_panel=DATA),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the data set and initial weights if missing.", rich_help_panel=DATA)
    ] = False,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the checkpoint here; default: as the entry states.", rich_help_panel=OUTPUT),
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Write the checkpoint's hash into the registry.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model by the recipe in its entry. If it is interrupted, the same command continues."""
    with importing():
        from kwbench.config.pinning import require_pinnable
        from kwbench.config.registry import dataset_of, read_registry
        from kwbench.data import load_dataset
        from kwbench.model import find_device
        from kwbench.networks.converting import convert_pretrained
        from kwbench.training import accuracy

    known = read_registry(registry)
    short, entry = known.find(name)
    if entry.recipe is None:
        raise UsageError(f"{short}: the entry has no recipe; add one to train it")
    on, file = str(find_device(device)), output or known.checkpoint_path(short)
    if pin:
        require_pinnable(known, short, file)
    pretrained = entry.recipe.pretrained
    start = convert_pretrained(pretrained, file=weights, download=download) if pretrained is not None else None
    dataset = load_dataset(entry.recipe.dataset or dataset_of(short), data=data, data_dir=data_dir, download=download)
    module, digest = _trained(short, entry, dataset, start, on, file, known if pin else None)
    validation = accuracy(module, dataset.validation) if len(dataset.validation) else None
    if as_json:
        print_json({"model": short, "checkpoint": str(file), "sha256": digest, "validation_accuracy": validation})
        return
    print_lines([file, f"sha256 {digest}"])
    if validation is not None:
        print(f"accuracy on the {len(dataset.validation)} validation images {100 * validation:.1f} %")
    if not pin and (entry.checkpoint is None or entry.checkpoint.sha256 != digest):
        progress_line("the registry pins another hash; --pin writes this one")


def _trained(
    name: str,
    entry: "ModelEntry",
    dataset: "DataSet",
    start: bytes | None,
    device: str,
    file: Path,
    registry: "Registry | None",
) -> "tuple[nn.Module, str]":
    """Train a network and save its checkpoint, pinned in the registry if one is given; return the network and the hash."""
    from kwbench.config.pinning import pin_checkpoint
    from kwbench.training import progress_path, recipe_hash, save_checkpoint, write_curve
    from kwbench.training import train as run

    def show(epoch: "Epoch") -> None:
        progress_line(
            f"{name}: epoch {epoch.number}/{epoch.total} at {epoch.done:.0%}, loss {epoch.loss:.4f}, "
            f"accuracy {epoch.accuracy:.4f}, {epoch.images_per_second:.0f} images/s, about {epoch.seconds_left:.0f} s left"
        )

    assert entry.recipe is not None
    recipe, progress = recipe_hash(entry), progress_path(file)
    module = run(
        entry,
        dataset,
        show,
        device,
        progress=progress,
        pretrained=start,
        curve=lambda epochs: write_curve(file, recipe, epochs),
    )
    digest = save_checkpoint(module, file, entry.recipe.storage, {"recipe": recipe})
    if registry is not None:
        pin_checkpoint(registry, name, file, digest)
    progress.unlink(missing_ok=True)
    return module, digest
