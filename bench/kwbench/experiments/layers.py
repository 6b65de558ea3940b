"""Theorem 1 and appendix B of xiao2020 (arXiv:1905.10510), measured on random layers of many widths and sparsities."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from kwbench.attacks.attack import strict
from kwbench.randomness import derived_seed
from kwbench.record.measurement import Array

# Steps of the bisection; float64 resolves no more.
_HALVINGS = 60

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Layers:
    """Measure random layers W x of `width` units under k-WTA, with W from N(0, 1 / width) and no bias, as in the theorem.

    For each width and sparsity, over `draws` layers and unit inputs of dimension `inputs`: the distance that the input moves
    perpendicular to itself before the activation pattern changes, and the jump of V k-WTA(W x) there, where V is drawn like
    W and has `outputs` rows.
    """

    revision: ClassVar[int] = 1

    __pydantic_config__: ClassVar[ConfigDict] = strict

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    gammas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    inputs: int = 64
    outputs: int = 64
    directions: int = 64
    draws: int = 10

    def __post_init__(self) -> None:
        if min(self.inputs - 1, self.outputs, self.directions, self.draws, *self.widths) < 1:
            raise ValueError("widths, outputs, directions and draws must be at least 1, inputs at least 2")
        if not all(0 < gamma < 1 and width > self.winners(width, gamma) for gamma in self.gammas for width in self.widths):
            raise ValueError("gammas must lie between 0 and 1 and leave a unit that loses")

    @staticmethod
    def winners(width: int, gamma: float) -> int:
        """Return k, computed as in `Kwta`."""
        share = Fraction(str(gamma))
        return max(1, share.numerator * width // share.denominator)

    def __call__(self, seed: int) -> dict[str, Array]:
        """Return `width` (w,), `gamma` (g,), and the following arrays by width, sparsity and draw (w, g, draws).

        `nearest`: the distance to the nearest input with another pattern. `typical`, `farthest`: the median and the largest
        distance to the first change over random directions. `threshold`: the value at which two units swap there (x* of
        appendix B) over the standard deviation of the layer's values. `jump`: the l2 norm of the jump over that of the
        output. The last two are medians over the directions.
        """
        names = ("nearest", "typical", "farthest", "threshold", "jump")
        measured = {name: np.zeros((len(self.widths), len(self.gammas), self.draws)) for name in names}
        for w, width in enumerate(self.widths):
            for g, gamma in enumerate(self.gammas):
                for draw in range(self.draws):
                    # All sparsities share the layer and the input of a draw.
                    generator = np.random.default_rng(derived_seed(seed, "layers", width, self.inputs, draw))
                    values = self._measure(generator, width, self.winners(width, gamma))
                    for name, value in zip(names, values, strict=True):
                        measured[name][w, g, draw] = value
        return {"width": np.array(self.widths, dtype=float), "gamma": np.array(self.gammas, dtype=float), **measured}

    def _measure(self, generator: np.random.Generator, width: int, k: int) -> tuple[float, ...]:
        x = generator.standard_normal(self.inputs)
        x /= np.linalg.norm(x)
        layer = generator.standard_normal((width, self.inputs)) / math.sqrt(width)
        following = generator.standard_normal((self.outputs, width)) / math.sqrt(width)
        directions = generator.standard_normal((self.directions, self.inputs))
        directions -= np.outer(directions @ x, x)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        values = layer @ x
        order = np.argsort(-values)
        wins, loses = order[:k], order[k:]
        slopes = directions @ layer.T
        # The inputs of one pattern form a convex region (lemma 1 of the paper), so bisection finds where a direction leaves it.
        low, high = np.zeros(self.directions), np.ones(self.directions)
        while not self._changed(values, slopes, wins, loses, high).all() and high[0] < 1e6:
            high *= 2
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            changed = self._changed(values, slopes, wins, loses, middle)
            low, high = np.where(changed, low, middle), np.where(changed, middle, high)
        moved = values + high[:, None] * slopes
        last = wins[moved[:, wins].argmin(axis=1)]
        first = loses[moved[:, loses].argmax(axis=1)]
        swap = moved[np.arange(self.directions), last]
        output = following[:, wins] @ values[wins]
        jumps = np.linalg.norm(following[:, first] - following[:, last], axis=0) * np.abs(swap) / np.linalg.norm(output)
        # A winner and a loser are equal on a plane; the nearest of these planes bounds the region.
        perpendicular = layer - np.outer(values, x)
        squares = (perpendicular**2).sum(axis=1)
        squared_distances = squares[wins, None] + squares[None, loses] - 2 * perpendicular[wins] @ perpendicular[loses].T
        nearest = (values[wins, None] - values[None, loses]) / np.sqrt(np.maximum(squared_distances, 1e-300))
        deviation = math.sqrt(1 / width)
        return (
            float(nearest.min()),
            float(np.median(high)),
            float(high.max()),
            float(np.median(swap)) / deviation,
            float(np.median(jumps)),
        )

    @staticmethod
    def _changed(values: Array, slopes: Array, wins: Indices, loses: Indices, distance: Array) -> NDArray[np.bool_]:
        moved: Array = values + distance[:, None] * slopes
        changed: NDArray[np.bool_] = moved[:, wins].min(axis=1) < moved[:, loses].max(axis=1)

        return changed
