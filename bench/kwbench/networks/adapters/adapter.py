"""What an adapter of a library is asked for, and what it returns."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import nn

from kwbench.errors import CannotEvaluate
from kwbench.networks.checkpoints import load_checkpoint
from kwbench.networks.loaded import Claimed


@dataclass(frozen=True)
class Adapter:
    """A library whose models have names.

    Attributes:
        prefix: what comes before the colon of a name.
        module: the module of this folder whose function `load` loads a model.
        extra: the extra of kwbench that installs the library; None where every installation has it.
        example: a name.
    """

    prefix: str
    module: str
    extra: str | None
    example: str

    @property
    def remedy(self) -> str:
        """What to do where the library is missing, as the end of a message."""
        return f"; pip install 'kwbench[{self.extra}]'" if self.extra else ""


@dataclass(frozen=True)
class Wanted:
    """What a model is loaded for.

    Attributes:
        name: what follows the colon of the model's name.
        dataset: the name of the data set.
        shape: (c, h, w) of its images.
        classes: the number of its classes.
        norm: the norm of the threat model.
        download: whether files may be fetched.
        checkpoint: weights of the user's own, in place of the library's.
        key: the key of the state dict in the checkpoint.
        strip_prefix: what names in the checkpoint begin with.
    """

    name: str
    dataset: str
    shape: tuple[int, ...]
    classes: int
    norm: str
    download: bool = False
    checkpoint: Path | None = None
    key: str | None = None
    strip_prefix: str = ""

    def load_checkpoint(self, module: nn.Module) -> Mapping[str, str]:
        """Load the user's checkpoint into a module and return its hash. Raises as `checkpoints.load_checkpoint` does."""
        assert self.checkpoint is not None
        load_checkpoint(module, self.checkpoint, key=self.key, strip_prefix=self.strip_prefix)
        return {"checkpoint_sha256": sha256_of(self.checkpoint)}


@dataclass(frozen=True)
class Adapted:
    """A model of another library.

    Attributes:
        module: the network, from pixels in [0, 1].
        origin: library, version, revision and hashes of files: part of a run's identity.
        notes: what a reader of its numbers must know, one clause each.
        claimed: the accuracies that the library states.
    """

    module: nn.Module
    origin: Mapping[str, str]
    notes: tuple[str, ...] = ()
    claimed: Claimed | None = field(default=None)


def origin_of(library: str, **details: str) -> dict[str, str]:
    """Return what identifies a model of a library beside its weights: the library's version, and these details."""
    try:
        installed = version(library)
    except PackageNotFoundError:
        installed = "unknown"
    return {"library": library, "version": installed, **details}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file. Raises CannotEvaluate if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as failure:
        raise CannotEvaluate(f"{path}: cannot be read ({failure.strerror})") from None


def missing(name: str, what: str, source: str) -> CannotEvaluate:
    """Return the error for files that are not on this machine and may not be fetched."""
    return CannotEvaluate(f"{name}: {what} not on this machine; --download fetches {source}")
