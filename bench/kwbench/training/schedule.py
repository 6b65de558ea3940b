"""The epochs of a recipe: the learning rate within each, and the gamma of k-WTA where it changes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from kwbench.config.recipe import Incremental, Recipe
from kwbench.errors import UsageError
from kwbench.networks.activations import Kwta


@dataclass(frozen=True, slots=True)
class Phase:
    """One epoch. `learning_rate` maps the share of the epoch that is done to a rate; `gamma` is None if it stays."""

    learning_rate: Callable[[float], float]
    gamma: Fraction | None


def phases(recipe: Recipe, kwta_layers: list[Kwta]) -> Iterator[Phase]:
    """Yield the epochs of a recipe for a network with these k-WTA layers.

    Raises UsageError if the recipe is incremental and there are none, or their gamma is not below the start.
    """
    start = recipe.incremental.start if recipe.incremental else None
    if recipe.incremental and not kwta_layers:
        raise UsageError("recipe.incremental lowers the gamma of k-WTA layers, and the network has none")
    for epoch in range(recipe.epochs):
        yield Phase(_learning_rate(recipe, epoch), start)
    if recipe.incremental:
        yield from _incremental_phases(recipe.incremental, kwta_layers[0].gamma)


def _learning_rate(recipe: Recipe, epoch: int) -> Callable[[float], float]:
    schedule, full = recipe.schedule, recipe.learning_rate
    if schedule.kind == "one_cycle":
        return _one_cycle(recipe, epoch)
    epochs_past = 0 if schedule.after is None else max(0, epoch + 1 - schedule.after)
    drops = epochs_past if schedule.repeat else min(epochs_past, 1)
    return lambda _: full * schedule.factor**drops


def _one_cycle(recipe: Recipe, epoch: int) -> Callable[[float], float]:
    """Return linear warm-up over the first fifth of all epochs, then linear decay to zero."""

    def rate(done: float) -> float:
        progress = (epoch + done) / recipe.epochs
        return recipe.learning_rate * (max(progress, 0.01) / 0.2 if progress < 0.2 else (1 - progress) / 0.8)

    return rate


def _incremental_phases(incremental: Incremental, target: Fraction) -> Iterator[Phase]:
    """Yield the epochs that lower gamma to `target`, and the final ones there."""
    if incremental.start <= target:
        raise UsageError(f"recipe.incremental.start: {incremental.start} is not above the network's gamma, {target}")
    gamma = incremental.start
    while gamma > target:
        gamma = max(target, gamma - incremental.step)
        for _ in range(incremental.epochs):
            yield Phase(lambda _: incremental.learning_rate, gamma)
    for epoch in range(incremental.final_epochs):
        yield Phase(_final_decay(incremental, epoch), target)


def _final_decay(incremental: Incremental, epoch: int) -> Callable[[float], float]:
    """Return linear decay to zero over the final epochs."""

    def rate(done: float) -> float:
        return incremental.learning_rate * (1 - (epoch + done) / incremental.final_epochs)

    return rate
