"""What an attack is: a frozen configuration that proposes images. It never judges, stores or seeds globally."""

from typing import Any, ClassVar, Protocol

from pydantic import ConfigDict
from torch import Tensor

from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Every attack's fields are checked by this: unknown names and wrong types are refused.
strict = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class Attack(Protocol):
    """A frozen dataclass whose fields are its whole configuration.

    `norms`: the norms in which it can search. `minimum_norm`: it looks for the nearest adversarial example and ignores eps;
    such attacks have a field `judged`. `whole_tiles`: it draws from global generators, so its proposals depend on the
    company of a sample, and it must always be given the same tiles.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    norms: ClassVar[frozenset[str]]
    minimum_norm: ClassVar[bool]
    whole_tiles: ClassVar[bool]

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose one image for each x (b, c, h, w) in [0, 1] with labels y (b,); the shape of x, detached."""
        ...
