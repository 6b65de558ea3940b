"""A k-WTA network at several gammas, trained directly and incrementally (xiao2020, arXiv:1905.10510, figures 4 and 6)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import StringIO
from math import ceil
from pathlib import Path

from ruamel.yaml import YAML

from kwbench.config.registry import Activation, Incremental, ModelEntry, Recipe, dataset_of, pin_checkpoint, read_registry
from kwbench.data import DataSet
from kwbench.errors import UsageError
from kwbench.files import write_whole
from kwbench.training import Epoch, progress_path, recipe_hash, save_checkpoint, train, write_curve

# xiao2020 D.1; the learning rate while gamma falls is not said there, a tenth is ours.
_START, _STEP, _EPOCHS, _SLOWER = Fraction("0.2"), Fraction("0.005"), 2, 0.1


@dataclass(frozen=True, slots=True)
class Variant:
    """A network of the series: its name in the series' registry, its gamma, and whether it was trained incrementally."""

    name: str
    gamma: Fraction
    incremental: bool
    entry: ModelEntry


def variants(name: str, entry: ModelEntry, gammas: Iterable[Fraction]) -> list[Variant]:
    """The entry at each gamma, falling: trained directly, and below the start of incremental training in both ways.

    What is trained directly learns for as many epochs as its incrementally trained sibling, so that the epochs are not what
    tells them apart. Raises UsageError for an entry without k-WTA or without a recipe, and for gammas outside (0, 1].
    """
    if entry.activation.name != "kwta" or entry.recipe is None:
        raise UsageError(f"{name}: gamma is of k-WTA networks that have a recipe; this entry is not such a one")
    recipe = entry.recipe
    lowering = recipe.incremental or Incremental(
        start=_START, step=_STEP, epochs=_EPOCHS, learning_rate=_SLOWER * recipe.learning_rate
    )
    found = []
    for gamma in sorted(set(gammas), reverse=True):
        if not 0 < gamma <= 1:
            raise UsageError(f"gamma {gamma}: must lie in (0, 1]")
        rounds = ceil((lowering.start - gamma) / lowering.step) if gamma < lowering.start else 0
        whole = recipe.epochs + (rounds * lowering.epochs + lowering.final_epochs if rounds else 0)
        ways: list[tuple[str, Recipe]] = [("direct", recipe.model_copy(update={"epochs": whole, "incremental": None}))]
        if rounds:
            ways.append(("incremental", recipe.model_copy(update={"incremental": lowering})))
        for way, chosen in ways:
            update = {
                "activation": Activation(name="kwta", gamma=str(gamma)),
                "recipe": chosen,
                "checkpoint": None,
                "description": f"gamma {float(gamma):g}, {way}",
            }
            title = f"{name}-gamma{float(gamma):g}-{way}"
            found.append(Variant(title, gamma, way == "incremental", entry.model_copy(update=update)))
    return found


def train_series(
    series: Sequence[Variant],
    folder: Path,
    dataset: Callable[[str], DataSet],
    report: Callable[[str, Epoch], None] = lambda _, __: None,
    device: str = "cpu",
) -> Path:
    """Train what `folder` does not hold yet, and return the registry there, in which every checkpoint is pinned.

    Stopped, it goes on where it was. Raises UsageError if the folder's registry has other networks under these names.
    """
    path = folder / "registry.yaml"
    known = dict(read_registry(path).own) if path.exists() else {}
    for each in series:
        if each.name in known and recipe_hash(known[each.name]) != recipe_hash(each.entry):
            raise UsageError(f"{path}: models.{each.name}: another recipe than the one asked for; give another folder")
    _write(path, {each.name: each.entry for each in series} | known)
    registry = read_registry(path)
    for each in series:
        where, recipe = registry.checkpoint_path(each.name), each.entry.recipe
        if (registry.own[each.name].checkpoint is not None and where.exists()) or recipe is None:
            continue
        progress, title = progress_path(where), each.name
        module = train(
            each.entry,
            dataset(recipe.dataset or dataset_of(each.name)),
            lambda epoch, title=title: report(title, epoch),  # type: ignore[misc]
            device,
            progress=progress,
            curve=lambda epochs, where=where, entry=each.entry: write_curve(where, recipe_hash(entry), epochs),  # type: ignore[misc]
        )
        pin_checkpoint(
            registry, each.name, where, save_checkpoint(module, where, recipe.storage, {"recipe": recipe_hash(each.entry)})
        )
        progress.unlink(missing_ok=True)
    return path


def _write(path: Path, entries: dict[str, ModelEntry]) -> None:
    plain = {name: entry.model_dump(mode="json", exclude_defaults=True, exclude_none=True) for name, entry in entries.items()}
    yaml, text = YAML(), StringIO()
    yaml.dump({"models": plain}, text)
    write_whole(path, text.getvalue())
