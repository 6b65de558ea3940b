"""A loaded network."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode, and what else is known from loading it.

    Attributes:
        module: the network.
        sha256: SHA-256 of its source: the checkpoint, or code and everything that the module can reach.
        notes: what a reader of its numbers must know about how it was loaded, one clause each, without a final full stop.
        hidden: modules that it uses without having registered them, in evaluation mode too.
        draws_itself: whether it holds random generators of its own, so that its answers depend on the calls before.
    """

    module: nn.Module
    sha256: str
    notes: tuple[str, ...] = ()
    hidden: tuple[nn.Module, ...] = ()
    draws_itself: bool = False
