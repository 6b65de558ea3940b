"""Search among images whose pixels lie on the sensor's grid, where a model may answer otherwise than between its points."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

from torch import Tensor

from kwbench.attacks.apgd import Apgd
from kwbench.attacks.attack import Attack, ModelFacts
from kwbench.attacks.search.pixel_grid import on_grid
from kwbench.attacks.search.transfer_images import most_misclassified, towards_targets
from kwbench.gradients import Exact
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# The levels of 8-bit images, above black.
_SENSOR = 255


@dataclass(frozen=True)
class Grid(Attack):
    """PGD towards several classes whose pixels are rounded to k / levels before every pass, and proposed as rounded.

    The grids are those on which the model's answers change; without an evaluation, k / 255.
    """

    norms = Apgd.norms
    needs = "gradients"

    steps: int = 40
    targets: int = 9
    selection_draws: int = 20
    levels: tuple[int, ...] = field(default=(), repr=False, compare=False, metadata={"parameter": False})

    def __post_init__(self) -> None:
        if min(self.steps, self.targets, self.selection_draws) < 1:
            raise ValueError("steps, targets and selection_draws must be at least 1")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        return most_misclassified(model, x, y, self._candidates(model, x, y, threat, rng), self.selection_draws)

    def _candidates(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Iterator[Tensor]:
        for levels in self.levels or (_SENSOR,):
            rounded = partial(on_grid, threat=threat, levels=levels)
            yield from towards_targets(
                model,
                x,
                y,
                threat,
                rng.child(levels),
                Exact(unreachable="zero"),
                steps=self.steps,
                targets=self.targets,
                placed=rounded,
            )

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        draws = self.selection_draws if stochastic else 1
        return len(self.levels or (_SENSOR,)) * (1 + self.targets * (2 * self.steps + draws))

    def doubled(self, times: int) -> Self:
        """See Attack."""
        return replace(self, steps=self.steps * 2**times)

    def resolved(self, facts: ModelFacts) -> Self:
        """See Attack."""
        return replace(self, levels=tuple(facts.grids))

    def redundant(self, facts: ModelFacts) -> str | None:
        """See Attack."""
        return None if facts.grids else "the answers do not change where pixels lie on a grid"
