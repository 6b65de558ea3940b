"""Gradient estimators: how an attack learns which way to go. Every gradient attack takes any of them.

An objective maps logits (b, k) to one or more values a sample, (m, b); an estimator returns their gradients in the pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from kwbench.model import Model
from kwbench.randomness import SampleRandom

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Estimate:
    """`logits` (b, k) at x itself, `values` (m, b) of the objective and their `gradients` (m, b, c, h, w), all detached.

    Where an estimator draws several times, the values are means over the draws, and so are the logits of `Eot`.
    """

    logits: Tensor
    values: Tensor
    gradients: Tensor


_strict = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Exact:
    """What autograd says, from one pass."""

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    kind: Literal["exact"] = "exact"

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). One forward and one backward for each of the m values."""
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            logits = model(leaf, rows)
            values = objective(logits)
            gradients = [
                torch.autograd.grad(value.sum(), leaf, retain_graph=index + 1 < len(values))[0]
                for index, value in enumerate(values)
            ]
        return Estimate(logits.detach(), values.detach(), torch.stack(gradients))


@dataclass(frozen=True)
class Eot:
    """Expectation over transformation: the mean of autograd's gradients over fresh draws of a stochastic model.

    Athalye et al. 2018, "Synthesizing Robust Adversarial Examples" (arXiv:1707.07397).
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    kind: Literal["eot"] = "eot"
    draws: int = 20

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws: {self.draws} is not positive")

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). `draws` forwards, and as many backwards for each of the m values."""
        return _mean([Exact()(model, x, objective, rng, rows) for _ in range(self.draws)])


@dataclass(frozen=True)
class Smooth:
    """The mean of autograd's gradients over Gaussian input noise (SmoothGrad, arXiv:1706.03825).

    The noise is not clipped. It misses what lies in jumps of the function, which `Es` sees.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    sigma: float
    kind: Literal["smooth"] = "smooth"
    draws: int = 20

    def __post_init__(self) -> None:
        if self.draws < 1 or self.sigma <= 0:
            raise ValueError(f"draws: {self.draws} and sigma: {self.sigma} must be positive")

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). `draws` + 1 forwards, and `draws` backwards for each of the m values."""
        with torch.no_grad():
            logits = model(x, rows)
        estimates = []
        for draw in range(self.draws):
            noise = rng.normal(f"smooth {draw}", x.shape[1:]).to(x.device)
            estimates.append(Exact()(model, x + self.sigma * noise, objective, rng, rows))
        return replace(_mean(estimates), logits=logits)


@dataclass(frozen=True)
class Es:
    """Antithetic differences of function values along Gaussian directions: the gradient of the smoothed objective, jumps
    included, without autograd.

    The estimator with which Tramer et al. 2020 (arXiv:2002.08347, section 5) broke k-WTA. Query points are not clipped.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    sigma: float
    kind: Literal["es"] = "es"
    draws: int = 50  # antithetic pairs

    def __post_init__(self) -> None:
        if self.draws < 1 or self.sigma <= 0:
            raise ValueError(f"draws: {self.draws} and sigma: {self.sigma} must be positive")

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). 2 * `draws` + 1 forwards, no backward."""
        with torch.no_grad():
            logits = model(x, rows)
            values = objective(logits)
            gradients = x.new_zeros((len(values), *x.shape))
            for draw in range(self.draws):
                noise = rng.normal(f"es {draw}", x.shape[1:]).to(x.device)
                up = objective(model(x + self.sigma * noise, rows))
                down = objective(model(x - self.sigma * noise, rows))
                gradients += (up - down).view(*values.shape, 1, 1, 1) * noise
        return Estimate(logits, values, gradients / (2 * self.sigma * self.draws))


Gradient = Annotated[Exact | Eot | Smooth | Es, Field(discriminator="kind")]


def _mean(estimates: list[Estimate]) -> Estimate:
    return Estimate(
        logits=torch.stack([estimate.logits for estimate in estimates]).mean(dim=0),
        values=torch.stack([estimate.values for estimate in estimates]).mean(dim=0),
        gradients=torch.stack([estimate.gradients for estimate in estimates]).mean(dim=0),
    )
