"""The registry of models: `registry.yaml`, validated. An entry describes one model; nothing here builds a network."""

import re
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from kwbench.config.prediction import PredictionRule
from kwbench.config.recipe import Recipe
from kwbench.config.strict_yaml import Strict, read_yaml, validate
from kwbench.errors import UsageError, did_you_mean

# The data set of model names without one.
DEFAULT_DATASET = "digits"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)?")


def _require_inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path:
        raise ValueError("must be a path below the registry's folder")
    if "\0" in path:
        raise ValueError("must be a path, which holds no NUL")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Architecture(Strict):
    """A network by name, with its size parameters."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})


class Activation(Architecture):
    """An activation by name, with its parameters. `gamma` stays as written, because it becomes an exact fraction."""


class Normalise(Strict):
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class Source(Strict):
    """The checkpoint that the authors published: where it is, its hash, and how its keys are converted to ours.

    It is at an address, or in an installed package: `package` is the package's name and the path below its folder, as in
    `pyautoattack/examples/model_test.pt`. `key` is the key of the state dict within the file; None if the file is the state
    dict.
    """

    url: Annotated[str, Field(pattern=r"^https://[!-~]+$")] | None = None
    package: Annotated[str, Field(pattern=r"^[a-z_]\w*(/\w[\w.-]*)+$")] | None = None
    sha256: Sha256
    key: str | None = None
    # A name in `kwbench.networks.converting.CONVERTERS`; None keeps the keys.
    converter: str | None = None

    @model_validator(mode="after")
    def _in_one_place(self) -> "Source":
        if (self.url is None) == (self.package is None):
            raise ValueError("give one of url and package")
        return self

    @property
    def where(self) -> str:
        """The address, or the package and path."""
        return self.url or f"package {self.package}"


class Checkpoint(Strict):
    """The file of the weights, relative to the registry's folder, and its SHA-256.

    `kwbench convert` makes the file from `source`, if there is one. A source in a package is converted whenever the file is
    missing.
    """

    file: Annotated[str, AfterValidator(_require_inside)]
    sha256: Sha256
    source: Source | None = None


class Paper(Strict):
    """A publication that describes a model, as reports cite it. `authors` are separated by " and ", as in BibTeX."""

    authors: str
    title: str
    year: Annotated[int, Field(ge=1900, le=2100)]
    venue: str = ""
    url: Annotated[str, Field(pattern=r"^https://[!-~]+$")] | None = None


class ModelEntry(Strict):
    """One model of the registry. `paper` is a key of the registry's `papers`."""

    architecture: Architecture
    activation: Activation
    checkpoint: Checkpoint | None = None
    recipe: Recipe | None = None
    normalise: Normalise | None = None
    # Standard deviation of Gaussian noise on the pixels at every pass, in training and in use (Cohen et al. 2019).
    smoothing: Annotated[float, Field(gt=0, le=1)] | None = None
    prediction: PredictionRule = PredictionRule()
    paper: str | None = None
    description: str = ""


class _File(Strict):
    papers: dict[str, Paper] = Field(default_factory=dict)
    models: dict[str, ModelEntry]


class Registry:
    """The entries of a registry file by full name, with a fallback registry for names that the file lacks.

    Attributes:
        path: The file.
        own: The entries of the file itself.
        fallback: The registry that comes with kwbench, None for that registry itself.
        papers: The publications that the file's entries name.
    """

    def __init__(
        self,
        path: Path,
        entries: dict[str, ModelEntry],
        fallback: "Registry | None" = None,
        papers: dict[str, Paper] | None = None,
    ) -> None:
        self.path = path
        self.own = entries
        self.fallback = fallback
        self.papers = papers or {}

    @property
    def entries(self) -> dict[str, ModelEntry]:
        """All entries, the file's own first; they override those of the fallback."""
        return {**self.own, **(self.fallback.entries if self.fallback else {}), **self.own}

    def find(self, name: str) -> tuple[str, ModelEntry]:
        """Return the entry's name and content; `digits/x` and `x` are the same. Raises UsageError with a suggestion."""
        short = name.removeprefix(f"{DEFAULT_DATASET}/")
        if short not in self.entries:
            raise UsageError(
                f"model {name!r} is not in {self.path}; {did_you_mean(short, self.entries, listed_by='kwbench models')} "
                "(a model of your own is written path/to/file.py:factory)"
            )
        return short, self.entries[short]

    def owner_of(self, name: str) -> "Registry":
        """Return the registry, this one or a fallback, whose own entry `name` is; checkpoint paths are relative to it."""
        return self if name in self.own or self.fallback is None else self.fallback.owner_of(name)

    def paper_of(self, name: str) -> Paper | None:
        """Return the publication that describes a model; None for an unknown model, or one whose entry names no paper."""
        if name not in self.entries:
            return None
        owner = self.owner_of(name)
        return owner.papers.get(owner.own[name].paper or "")

    def checkpoint_path(self, name: str) -> Path:
        """Return the path of an entry's checkpoint, whether or not the file exists."""
        owner = self.owner_of(name)
        checkpoint = owner.own[name].checkpoint
        file = checkpoint.file if checkpoint else f"models/{dataset_of(name)}/{name.rsplit('/', maxsplit=1)[-1]}.safetensors"
        return owner.path.parent / file


def dataset_of(name: str) -> str:
    """Return the data set in a model's name."""
    return name.split("/", maxsplit=1)[0] if "/" in name else DEFAULT_DATASET


def read_registry(path: Path | None = None) -> Registry:
    """Read a registry; the one that comes with kwbench is its fallback.

    Without `path`, read `registry.yaml` of the working folder if it exists, otherwise the one that comes with kwbench.

    Raises UsageError if the file is malformed, naming file and key.
    """
    starter = _starter_path()
    entries, papers = _read_file(starter)
    fallback = Registry(starter, entries, papers=papers)
    file = path or Path("registry.yaml")
    if (path is None and not file.exists()) or (file.exists() and file.samefile(starter)):
        return fallback
    entries, papers = _read_file(file)
    return Registry(file, entries, fallback, papers)


_Contents = tuple[dict[str, ModelEntry], dict[str, Paper]]


def _read_file(path: Path) -> _Contents:
    """Return the entries and papers of a file. They are cached: a command reads its registry repeatedly, and parsing takes
    0.25 s."""
    try:
        state = path.stat()
    except OSError:
        return _parse_file(path, None)
    entries, papers = _parse_file(path, (state.st_ino, state.st_mtime_ns, state.st_size))
    return dict(entries), papers


@lru_cache(maxsize=8)
def _parse_file(path: Path, state: tuple[int, ...] | None) -> _Contents:
    """Return the entries and papers of a file; `state` is only a cache key that changes with the file."""
    file = validate(_File, read_yaml(path), str(path))
    for name, entry in file.models.items():
        if entry.paper is not None and entry.paper not in file.papers:
            known = did_you_mean(entry.paper, file.papers)
            raise UsageError(f"{path}: models.{name}.paper: {entry.paper!r} is not under papers; {known}")
        if not _NAME.fullmatch(name):
            raise UsageError(f"{path}: models.{name}: names match [dataset/]name in a-z, 0-9, '.', '_' and '-'")
        short = name.removeprefix(f"{DEFAULT_DATASET}/")
        if short != name and short in file.models:
            raise UsageError(f"{path}: models.{name}: the same model as models.{short}; keep one of them")
    return {name.removeprefix(f"{DEFAULT_DATASET}/"): entry for name, entry in file.models.items()}, file.papers


def _starter_path() -> Path:
    """Return the path of the registry that comes with kwbench: in the wheel, or in the source tree."""
    starter = Path(__file__).parents[1] / "starter" / "registry.yaml"
    return starter if starter.exists() else Path(__file__).parents[3] / "registry.yaml"
