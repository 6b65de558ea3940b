"""What an attack is: a frozen configuration that proposes images. It never judges, stores or seeds globally."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import BeforeValidator, ConfigDict
from torch import Tensor

from kwbench.attacks.search.losses import fooled
from kwbench.gradients import Gradient, with_more_draws
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel, exact_fraction

# Every attack's fields are checked by this: unknown names and wrong types are refused.
strict = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


def _from_fraction(value: Any) -> Any:
    return float(exact_fraction(value)) if isinstance(value, str) else value


# A length in the norm's unit; YAML may say "2/255".
Length = Annotated[float, BeforeValidator(_from_fraction)]


class Attack(Protocol):
    """A frozen dataclass whose fields are its whole configuration.

    `norms`: the norms in which it can search. `minimum_norm`: it looks for the nearest adversarial example and ignores eps;
    such attacks have a field `judged`. `whole_tiles`: it draws from global generators, so its proposals depend on the
    company of a sample, and it must always be given the same tiles. Read them from an attack, not from its class: an adapter
    knows them only once it knows what it adapts.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    revision: ClassVar[int]
    libraries: ClassVar[tuple[str, ...]]

    @property
    def norms(self) -> frozenset[str]: ...

    @property
    def minimum_norm(self) -> bool: ...

    @property
    def whole_tiles(self) -> bool: ...

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose one image for each x (b, c, h, w) in [0, 1] with labels y (b,); the shape of x, detached."""
        ...


@runtime_checkable
class Doubling(Attack, Protocol):
    """An attack that knows how to spend more: a suite may escalate it."""

    def doubled(self, times: int) -> Attack:
        """The attack with its budget doubled so many times."""
        ...

    def other_half(self) -> Attack:
        """What makes up twice the budget where the attack was made once, with other random numbers: itself where restarts are
        alike, else all of it."""
        ...


@runtime_checkable
class Budgeted(Attack, Protocol):
    """An attack that knows what it may cost."""

    def passes(self, stochastic: bool) -> int:
        """The largest number of forwards and backwards that it may spend on a sample of such a model."""
        ...


def misclassified(model: Model, z: Tensor, logits: Tensor, labels: Tensor, rows: Tensor, precision: Precision) -> Tensor:
    """Which z (b, c, h, w) the judge would call broken (b,).

    `logits` (b, k) are a search's; where its precision is not float32, float32 is asked of those that they call broken. `rows`
    are the samples' places in the metered batch.
    """
    seen = fooled(logits, labels)
    if bool(seen.any()) and model.arithmetic(precision) != "float32":
        with torch.no_grad():
            seen[seen.clone()] = fooled(model(z[seen], rows[seen]), labels[seen])
    return seen


def means_under_same_draws(
    model: Model, images: Sequence[Tensor], value: Callable[[Tensor], Tensor], rows: Tensor, draws: int
) -> list[Tensor]:
    """The mean of `value` (b,) of a stochastic model's logits on each of the batches of images, which meet the same randomness.

    Not a number counts as infinity: an answer that is not a number is what the judge calls wrong.
    """
    totals = [torch.zeros(len(z), device=z.device) for z in images]
    for _ in range(draws):
        with model.same_draws():
            for total, z in zip(totals, images, strict=True):
                total.add_(value(model(z, rows)).nan_to_num(nan=torch.inf))
    return [total / draws for total in totals]


class _Climb(Attack, Protocol):
    @property
    def steps(self) -> int: ...

    @property
    def restarts(self) -> int: ...

    @property
    def random_start(self) -> bool: ...

    @property
    def gradient(self) -> Gradient: ...


_C = TypeVar("_C", bound=_Climb)


def doubled_climb(attack: _C, times: int) -> _C:
    """More draws of an estimator that has draws, else more restarts, or steps where all starts are one."""
    gradient = with_more_draws(attack.gradient, times)
    if gradient is not None:
        return replace(attack, gradient=gradient)
    if attack.random_start:
        return replace(attack, restarts=attack.restarts * 2**times)
    return replace(attack, steps=attack.steps * 2**times)


def other_half_of_climb(attack: _C) -> _C:
    """The climb itself where twice its budget is more restarts."""
    twice = doubled_climb(attack, 1)
    return attack if twice.restarts != attack.restarts else twice
