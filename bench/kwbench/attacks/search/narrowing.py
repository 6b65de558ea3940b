"""Which targets of a sample a targeted search goes on with, judged by how close the search has come to them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Narrowing:
    """When a climb of `steps` steps gives up some of its `targets`.

    `finalists`: how many targets of a sample go on, three times as many after a sixth of the steps; None for all. `reach`: how
    far below the true class, in probability, a target may stay; infinity for any distance.
    """

    steps: int
    targets: int
    finalists: int | None
    reach: float

    @property
    def sixth(self) -> int:
        """The number of steps after which most targets of a sample are given up for its finalists."""
        return -(-self.steps // 6)

    @property
    def third(self) -> int:
        """The number of steps after which only promising climbs go on."""
        return -(-self.steps // 3)

    def climbs_after(self, steps: int) -> int:
        """Return the largest number of targets of a sample that are still climbed for after so many steps."""
        if self.finalists is None or steps < self.sixth:
            return self.targets
        return min(self.targets, self.finalists if steps >= self.third else 3 * self.finalists)

    def goes_on(self, closest_at_sixth: Tensor, closest: Tensor) -> Tensor:
        """Return which climbs (l,) go on after a third of the steps: those within reach, or that would arrive at their pace.

        Both arguments are the largest probability margins (l,) so far, below zero; the pace is that since a sixth of the steps.
        """
        stretches = (self.steps - self.third) / max(self.third - self.sixth, 1)
        return (closest >= -self.reach) | (closest + stretches * (closest - closest_at_sixth) >= 0)

    def restarts(self, closest: Tensor, approach: Tensor) -> Tensor:
        """Return which targets (b, m) are worth a further restart, given the largest probability margins (b, m) so far, of any
        class and of the targets themselves."""
        worth = closest >= -self.reach
        if self.finalists is not None:
            worth &= ranks(approach) < self.finalists
        return worth


def ranks(values: Tensor) -> Tensor:
    """Return the rank (b, m) of each value in its row, 0 for the largest; of equal values the first ranks first."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
