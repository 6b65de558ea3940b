"""The base class of attacks. An attack proposes images; it never judges them, stores anything or seeds global generators."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import BeforeValidator, ConfigDict
from torch import Tensor

from kwbench.attacks.search.student import Lessons
from kwbench.certification.certificate import Prospects
from kwbench.gradients import EvidenceGroup, Gradient
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel, exact_fraction

# Configuration of every attack's fields: unknown names and wrong types are refused.
strict = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

# What an attack asks of the model under attack.
Needs = Literal["gradients", "scores", "labels", "nothing"]

# How the proposals of a minimum-norm attack are judged: by their distance, or clipped into the ball and predicted again.
JudgingRule = Literal["distance", "clipped"]


def _from_fraction(value: Any) -> Any:
    return float(exact_fraction(value)) if isinstance(value, str) else value


# The precision of a search. `auto` is the fastest that does not mislead it, of those that the model and the device allow.
PrecisionOrAuto = Precision | Literal["auto"]

# A length in the norm's unit; YAML may say "2/255".
Length = Annotated[float, BeforeValidator(_from_fraction)]


class ModelFacts(Protocol):
    """What an attack may know of an evaluation before it starts. Facts that must be measured are measured on first use."""

    @property
    def threat(self) -> ThreatModel:
        """The ball of the evaluation."""

    @property
    def shape(self) -> Sequence[int]:
        """The shape (c, h, w) of an image."""

    @property
    def hides_gradients(self) -> bool:
        """Whether an operation of the model hides its gradient, or may hide it where the relaxation cannot see it."""

    @property
    def prospects(self) -> Prospects:
        """Whether a complete search of the balls may pay, and how long it may take."""

    @property
    def lessons(self) -> Lessons:
        """Images from which students can learn the model's answers, and the students that have."""

    @property
    def grids(self) -> Sequence[int]:
        """The grids of pixel values, by their number of levels, on which the model answers otherwise than beside them."""

    @property
    def submodules(self) -> Sequence[str]:
        """The names of the model's submodules that answer like a classifier, but not like the model as a whole."""

    @property
    def search_precision(self) -> Precision:
        """The fastest precision for a search whose steps follow exact gradients."""

    @property
    def precision_without_bfloat16(self) -> Precision:
        """The fastest precision for a search that bfloat16 would mislead."""


class Attack(ABC):
    """Proposes an image for every sample of a batch, and declares what it needs and what it costs.

    Subclasses are frozen dataclasses whose fields are their parameters and thus part of a run's identity; class attributes are
    not. Read the attributes from an instance: an adapter such as `foolbox` knows them only once its parameters are known. A new
    attack is a file in this folder and a line in `kwbench.attacks.ATTACKS`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = strict
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    # Raised with every change that can change a proposal or its cost; part of a run's identity.
    revision: ClassVar[int] = 1
    # Distribution names of the libraries that the attack wraps; their versions are part of a run's identity.
    libraries: ClassVar[tuple[str, ...]] = ()
    # SHA-256 of the code of an attack from outside the package; part of a run's identity.
    code_sha256: ClassVar[str | None] = None

    # The norms in which it can search.
    norms: frozenset[str]
    # What it asks of the model under attack; an adapter of a library, the most that any of its attacks asks.
    needs: Needs
    # Whether it looks for the nearest adversarial example and ignores eps.
    minimum_norm: bool = False
    # How its proposals are judged; a parameter of minimum-norm attacks.
    judged: JudgingRule = "distance"
    # Whether its proposals for a sample depend on the other samples of the batch, so that it must always get the same whole
    # tiles: it draws from global generators.
    whole_tiles: bool = False
    # Whether it is a random natural perturbation without a search. The judge then also asks for predictions of samples that
    # were wrong before.
    natural: bool = False
    # How many steps it takes, if it takes any; a parameter of most attacks.
    steps: int | None = None
    # Its gradient estimator, if it has one; a parameter.
    gradient: Gradient | None = None
    # In which precision it searches, if it leaves the choice; a parameter.
    precision: PrecisionOrAuto | None = None
    # The name of its surrogate model, if it has one, and the model once loaded. Its passes count as the attack's.
    surrogate: str | None = None
    source: Model | None = None

    @abstractmethod
    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose one image for each x (b, c, h, w) in [0, 1] with labels y (b,); the shape of x, detached."""

    @property
    def evidence_group(self) -> EvidenceGroup | None:
        """What kind of search its success is evidence for; None if it does not search, mixes several kinds, or cannot tell."""
        if self.surrogate is not None:
            return "transfer"
        if self.gradient is not None:
            return self.gradient.evidence_group
        return None if self.natural or self.needs == "gradients" else "gradient-free"

    @property
    def search_precision(self) -> Precision:
        """The precision of the search; float32 for an `auto` that has not been resolved."""
        return "float32" if self.precision is None or self.precision == "auto" else self.precision

    @property
    def from_labels(self) -> bool:
        """Whether predicted classes are all that it asks of the model."""
        return self.needs in ("labels", "nothing")

    def passes(self, stochastic: bool) -> int | None:
        """Return the largest number of forward and backward passes that it may spend on a sample of such a model; None if it is
        unknown."""
        return None

    def doubled(self, times: int) -> "Attack | None":
        """Return the attack with its budget doubled `times` times; None if it has no budget to double."""
        return None

    def other_half(self) -> "Attack | None":
        """Return what makes up twice the budget once the attack has run, with other random numbers: itself if its restarts are
        alike, otherwise the doubled attack; None if it has no budget to double."""
        return self.doubled(1)

    def resolved(self, facts: ModelFacts) -> Self:
        """Return the attack with `auto` and every other parameter that depends on the model or the threat made definite."""
        attack = self if self.gradient is None else replace(self, gradient=self.gradient.within(facts.threat, facts.shape))
        if attack.precision != "auto":
            return attack
        tolerant = attack.gradient is not None and attack.gradient.tolerates_rounding
        return replace(attack, precision=facts.search_precision if tolerant else facts.precision_without_bfloat16)

    def redundant(self, facts: ModelFacts) -> str | None:
        """Return why the attack adds nothing to attacks on exact gradients of this model; None if it may add something."""
        if self.gradient is not None and self.gradient.relaxes and not facts.hides_gradients:
            return "no operation of the model hides its gradient: relaxed ones are exact"
        return None

    def revisions(self) -> dict[str, int]:
        """Return the revisions of the parts of kwbench that its proposals depend on."""
        estimator = {} if self.gradient is None else self.gradient.revisions()
        return {"attack": self.revision, **estimator}

    def declared(self) -> dict[str, Any]:
        """Return the facts that the checks of a record read, as plain data. They follow from the attack and its parameters, and
        take no part in a run's identity."""
        return {
            "needs": self.needs,
            "natural": self.natural,
            "minimum_norm": self.minimum_norm,
            "surrogate": self.surrogate,
            "steps": self.steps,
            "evidence_group": self.evidence_group,
            "relaxes": self.gradient is not None and self.gradient.relaxes,
        }


class RestartedAttack(Attack):
    """An attack that climbs a loss from one or more starts.

    A doubled budget goes to the draws of its estimator if they have a number, otherwise to restarts, or to steps if it has no
    random start.
    """

    steps: int
    restarts: int
    random_start: bool
    gradient: Gradient

    def doubled(self, times: int) -> Self:
        """See Attack."""
        gradient = self.gradient.doubled(times)
        if gradient is not None:
            return replace(self, gradient=gradient)
        if self.random_start:
            return replace(self, restarts=self.restarts * 2**times)
        return replace(self, steps=self.steps * 2**times)

    def other_half(self) -> Self:
        """See Attack."""
        twice = self.doubled(1)
        return self if twice.restarts != self.restarts else twice
