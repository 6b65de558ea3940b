"""A loaded network."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Claimed:
    """Accuracies that a library states for a model, fractions of 1; None where it states none.

    Attributes:
        by: the library.
        eps: the radius, as the library writes it.
        a_std: accuracy on clean images.
        autoattack: robust accuracy under AutoAttack.
        best_known: the lowest robust accuracy that the library knows of.
        paper: title of the paper that describes the model.
        link: address of that paper.
    """

    by: str
    eps: str
    a_std: float | None
    autoattack: float | None
    best_known: float | None
    paper: str = ""
    link: str = ""

    def sentence(self) -> str:
        """Return the accuracies in percent, as a clause."""
        values = {"A_std": self.a_std, "under AutoAttack": self.autoattack, "best known": self.best_known}
        stated = ", ".join(f"{name} {100 * value:.2f}" for name, value in values.items() if value is not None)
        return f"{self.by} claims at eps {self.eps}, in percent: {stated}"


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode, and what else is known from loading it.

    Attributes:
        module: the network.
        sha256: SHA-256 of its source: the checkpoint, or code and everything that the module can reach.
        notes: what a reader of its numbers must know about how it was loaded, one clause each, without a final full stop.
        hidden: modules that it uses without having registered them, in evaluation mode too.
        origin: what identifies a model of another library beside its weights: versions, revisions, hashes of files.
        claimed: the accuracies that the library states.
        draws_itself: whether it holds random generators of its own, so that its answers depend on the calls before.
    """

    module: nn.Module
    sha256: str
    notes: tuple[str, ...] = ()
    hidden: tuple[nn.Module, ...] = ()
    draws_itself: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)
    claimed: Claimed | None = None
