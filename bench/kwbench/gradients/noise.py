"""Gaussian input noise, as the estimators `smooth` and `es` use it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from kwbench.gradients.agreement import Draws
from kwbench.gradients.estimator import Estimator, Objective
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Numbers that the generator of a sample draws at once.
_CHUNK = 2**16


class NoiseEstimator(Estimator):
    """An estimator that adds Gaussian noise to the input: of standard deviation `sigma` in pixel values, or `relative_sigma` in
    eps, which needs a threat model: see `within`."""

    noisy: ClassVar[bool] = True

    sigma: float | None
    relative_sigma: float | None
    draws: Draws

    def __post_init__(self) -> None:
        if self.draws != "auto" and self.draws < 1:
            raise ValueError(f"draws: {self.draws} must be positive")
        if (self.sigma is None) == (self.relative_sigma is None):
            raise ValueError("give one of sigma, in pixels, and relative_sigma, in eps")
        if any(sigma is not None and sigma <= 0 for sigma in (self.sigma, self.relative_sigma)):
            raise ValueError("sigma and relative_sigma must be positive")

    def within(self, threat: ThreatModel, shape: Sequence[int]) -> Self:
        """Convert `relative_sigma` to the standard deviation of a pixel of images (c, h, w): the noise is then about
        `relative_sigma` eps long in l2 and l1, and about as large at each pixel in linf."""
        if self.relative_sigma is None:
            return self
        return replace(self, sigma=self.relative_sigma * threat.pixel_radius(math.prod(shape)), relative_sigma=None)

    def doubled(self, times: int) -> Self | None:
        """See Estimator."""
        return None if self.draws == "auto" else replace(self, draws=self.draws * 2**times)

    @property
    def pixel_sigma(self) -> float:
        """The standard deviation of the noise in pixel values. Raises ValueError before `within` has converted it."""
        if self.sigma is None:
            raise ValueError("relative_sigma needs a threat model; see within")
        return self.sigma


def noise_for(draws: int, x: Tensor, rng: SampleRandom, at_once: int | None = None) -> Iterator[Tensor]:
    """Yield `draws` standard normal images for each x (b, c, h, w), in pieces (d, b, c, h, w) of at most `at_once` draws.

    Several draws share a generator, because making one for each draw of a sample costs more than a pass of a small network.
    The numbers do not depend on `at_once`.
    """
    size = max(1, min(draws, _CHUNK // x[0].numel()))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        numbers = rng.normal(start, (count, *x.shape[1:])).transpose(0, 1)
        for first in range(0, count, at_once or count):
            yield numbers[first : first + (at_once or count)].to(x.device)


def shifted(x: Tensor, shifts: Tensor) -> Tensor:
    """Return x (b, c, h, w) plus each of the shifts (d, b, c, h, w), clipped to [0, 1], as (d * b, c, h, w)."""
    return (x + shifts).clamp_(0, 1).flatten(0, 1)


def stacked(objective: Objective, copies: int) -> Objective:
    """Return the objective for logits (copies * b, k) of several copies of the batch, one copy after the other."""
    return lambda logits: torch.cat([objective(part) for part in logits.chunk(copies)], dim=1)


def repeated(rows: Tensor | None, copies: int) -> Tensor | None:
    """Return the rows (b,) of several copies of the batch, as (copies * b,)."""
    return None if rows is None else rows.repeat(copies)
