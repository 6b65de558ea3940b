"""The epochs of a recipe: how the learning rate runs, and how k-WTA's gamma falls."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from kwbench.config.recipe import Incremental, Recipe
from kwbench.errors import UsageError
from kwbench.networks.activations import Kwta


@dataclass(frozen=True, slots=True)
class Phase:
    """One epoch: its learning rate by the share of it that is done, and k-WTA's gamma where it changes."""

    learning_rate: Callable[[float], float]
    gamma: Fraction | None


def phases(recipe: Recipe, winners: list[Kwta]) -> Iterator[Phase]:
    """The epochs of a recipe, for a network with these k-WTA layers.

    Raises UsageError if the recipe is incremental and there are none, or their gamma is not below the start.
    """
    start = recipe.incremental.start if recipe.incremental else None
    if recipe.incremental and not winners:
        raise UsageError("recipe.incremental lowers the gamma of k-WTA layers, and the network has none")
    for epoch in range(recipe.epochs):
        yield Phase(_scheduled(recipe, epoch), start)
    if recipe.incremental:
        yield from _lowering(recipe.incremental, winners[0].gamma)


def _scheduled(recipe: Recipe, epoch: int) -> Callable[[float], float]:
    schedule, full = recipe.schedule, recipe.learning_rate
    if schedule.kind == "one_cycle":
        return _one_cycle(recipe, epoch)
    over = 0 if schedule.after is None else max(0, epoch + 1 - schedule.after)
    drops = over if schedule.repeat else min(over, 1)
    return lambda _: full * schedule.factor**drops


def _one_cycle(recipe: Recipe, epoch: int) -> Callable[[float], float]:
    """Linear warm-up over the first fifth, then linear decay to zero."""

    def rate(done: float) -> float:
        progress = (epoch + done) / recipe.epochs
        return recipe.learning_rate * (max(progress, 0.01) / 0.2 if progress < 0.2 else (1 - progress) / 0.8)

    return rate


def _lowering(incremental: Incremental, target: Fraction) -> Iterator[Phase]:
    if incremental.start <= target:
        raise UsageError(f"recipe.incremental.start: {incremental.start} is not above the network's gamma, {target}")
    gamma = incremental.start
    while gamma > target:
        gamma = max(target, gamma - incremental.step)
        for _ in range(incremental.epochs):
            yield Phase(lambda _: incremental.learning_rate, gamma)
    for epoch in range(incremental.final_epochs):
        yield Phase(_falling(incremental, epoch), target)


def _falling(incremental: Incremental, epoch: int) -> Callable[[float], float]:
    """Linear decay to zero over the final epochs."""

    def rate(done: float) -> float:
        return incremental.learning_rate * (1 - (epoch + done) / incremental.final_epochs)

    return rate
