"""Gradient estimators: how an attack learns which way to go. Every gradient attack takes any of them.

An objective maps logits (b, k) to one or more values a sample, (m, b); an estimator returns their gradients in the pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.relaxation import relaxed_pass
from kwbench.threat import ThreatModel

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Estimate:
    """`logits` (b, k) at x itself, `values` (m, b) of the objective and their `gradients` (m, b, c, h, w), all detached.

    Where an estimator draws several times, the values are means over the draws, and so are the logits of `Eot`.
    """

    logits: Tensor
    values: Tensor
    gradients: Tensor

    def plus(self, values: Tensor, gradients: Tensor) -> "Estimate":
        """With more values and gradients added to these."""
        return replace(self, values=self.values + values, gradients=self.gradients + gradients)


_strict = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Exact:
    """What autograd says, from one pass.

    Where no path of differentiable operations leads from the logits to the pixels, autograd raises; `unreachable: zero` takes
    the gradient for zero, which is for suites whose other attacks need none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    revision: ClassVar[int] = 1
    kind: Literal["exact"] = "exact"
    unreachable: Literal["raise", "zero"] = "raise"

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). One forward and one backward for each of the m values."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()  # the model passes a copy on
            logits = model(leaf, rows)
            values = objective(logits)
            if self.unreachable == "zero":
                values = values + 0 * leaf.flatten(1)[:, 0]
            if len(values) == 1:
                gradients = torch.autograd.grad(values.sum(), leaf)[0][None]
            else:
                gradients = torch.stack(
                    [
                        torch.autograd.grad(value.sum(), leaf, retain_graph=index + 1 < len(values))[0]
                        for index, value in enumerate(values)
                    ]
                )
        return Estimate(logits.detach(), values.detach(), gradients)


# The default of every gradient attack.
EXACT = Exact()


@dataclass(frozen=True)
class Eot:
    """Expectation over transformation: the mean of autograd's gradients over fresh draws of a stochastic model.

    Athalye et al. 2018, "Synthesizing Robust Adversarial Examples" (arXiv:1707.07397).
    `draws: auto` doubles them, from 2 up to 64, until the means of two independent halves have a cosine of 0.3, averaged
    over the rows at hand; a deterministic model gets one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    revision: ClassVar[int] = 1
    kind: Literal["eot"] = "eot"
    draws: int | Literal["auto"] = 20
    unreachable: Literal["raise", "zero"] = "raise"

    def __post_init__(self) -> None:
        if self.draws != "auto" and self.draws < 1:
            raise ValueError(f"draws: {self.draws} is not positive")

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). `draws` forwards, and as many backwards for each of the m values."""
        once = Exact(unreachable=self.unreachable)
        if self.draws != "auto":
            return _mean([once(model, x, objective, rng, rows) for _ in range(self.draws)])
        found = [once(model, x, objective, rng, rows)]
        while model.stochastic and len(found) < _MOST_DRAWS:
            # As many again; their mean and that of those before are independent.
            more = [once(model, x, objective, rng, rows) for _ in found]
            agreement = _agreement(_mean(found).gradients, _mean(more).gradients)
            found += more
            if agreement >= _ENOUGH:
                break
        return _mean(found)


# Draws that `auto` ends at, and the cosine of two independent means that is enough.
_MOST_DRAWS, _ENOUGH = 64, 0.3


def _agreement(one: Tensor, other: Tensor) -> float:
    """The mean cosine of gradients (m, b, c, h, w); 1 where none points anywhere, as more draws would be no help."""
    cosines = cosines_of(one, other)
    told = ~cosines.isnan()
    return cosines[told].mean().item() if bool(told.any()) else 1.0


def cosines_of(one: Tensor, other: Tensor) -> Tensor:
    """Cosines (m, b) of gradients (m, b, c, h, w); NaN where one of them points nowhere."""
    cosines = (_unit(one) * _unit(other)).sum(dim=2)
    return cosines.where(cosines.isfinite() & (cosines != 0), torch.nan)


def _unit(gradients: Tensor) -> Tensor:
    """Each gradient of (m, b, ...) at length 1, as (m, b, n); their squares alone would underflow."""
    flat = gradients.flatten(2)
    return F.normalize(flat / flat.abs().amax(dim=2, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny), dim=2)


def _require_noise(estimator: "Smooth | Es") -> None:
    if estimator.draws != "auto" and estimator.draws < 1:
        raise ValueError(f"draws: {estimator.draws} must be positive")
    if (estimator.sigma is None) == (estimator.relative_sigma is None):
        raise ValueError("give one of sigma, in pixels, and relative_sigma, in eps")
    if any(sigma is not None and sigma <= 0 for sigma in (estimator.sigma, estimator.relative_sigma)):
        raise ValueError("sigma and relative_sigma must be positive")


def _sigma(estimator: "Smooth | Es") -> float:
    if estimator.sigma is None:
        raise ValueError("relative_sigma needs a threat model; see within")
    return estimator.sigma


def within(gradient: "Gradient", threat: ThreatModel, shape: Sequence[int]) -> "Gradient":
    """The estimator for images (c, h, w) in this ball: a `relative_sigma` as the standard deviation of a pixel, such that the
    noise is about that many eps long in l2 and l1, and at each pixel in linf."""
    if not isinstance(gradient, Smooth | Es) or gradient.relative_sigma is None:
        return gradient
    return replace(gradient, sigma=gradient.relative_sigma * threat.pixel_radius(math.prod(shape)), relative_sigma=None)


@dataclass(frozen=True)
class Smooth:
    """The mean of autograd's gradients over Gaussian input noise (SmoothGrad, arXiv:1706.03825).

    Unlike in the source, noisy images are clipped to [0, 1], beyond which a model need not answer. It misses what lies in jumps
    of the function, which `Es` sees. `draws: auto` doubles those of each sample, from 2 up to 64, until the means of two
    independent halves have a cosine of 0.3.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    revision: ClassVar[int] = 1
    sigma: float | None = None
    kind: Literal["smooth"] = "smooth"
    relative_sigma: float | None = None
    draws: int | Literal["auto"] = 20
    unreachable: Literal["raise", "zero"] = "raise"

    def __post_init__(self) -> None:
        _require_noise(self)

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). `draws` + 1 forwards, and `draws` backwards for each of the m values."""
        with torch.no_grad():
            logits = model(x, rows)
        stream = rng.child("smooth")
        if self.draws != "auto":
            values, gradients = self._around(model, x, objective, stream, rows, self.draws)
            return Estimate(logits, values, gradients)
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        values, gradients = self._around(model, x, objective, stream.child(1), rows, 1)
        apart, draws = torch.arange(len(x), device=x.device), 1
        while len(apart) and draws < _MOST_DRAWS:
            # As many again; their mean and that of those before are independent.
            numbers = stream.child(2 * draws).take(apart)
            more = self._around(model, x[apart], _of_some(objective, apart, len(x)), numbers, rows[apart], draws)
            agreement = cosines_of(gradients[:, apart], more[1]).nan_to_num(1.0).mean(dim=0)
            values[:, apart] = (values[:, apart] + more[0]) / 2
            gradients[:, apart] = (gradients[:, apart] + more[1]) / 2
            apart, draws = apart[agreement < _ENOUGH], 2 * draws
        return Estimate(logits, values, gradients)

    def _around(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None, draws: int
    ) -> tuple[Tensor, Tensor]:
        """Means over so many draws of noise of the objective's values (m, b) and gradients (m, b, c, h, w)."""
        sigma, once = _sigma(self), Exact(unreachable=self.unreachable)
        total: Estimate | None = None
        # No more rows a pass than a tile holds: autograd keeps what each went through.
        for noise in _noises(draws, x, rng, at_once=max(1, model.tile // max(1, len(x)))):
            near, payers = _shifted(x, sigma * noise), _repeated(rows, len(noise))
            found = once(model, near, _stacked(objective, len(noise)), rng, payers)
            # One draw after the other, so that no sum depends on how many went into a pass.
            parts = (each.chunk(len(noise), dim=1) for each in (found.values, found.gradients))
            for values, gradients in zip(*parts, strict=True):
                total = Estimate(found.logits, values, gradients) if total is None else total.plus(values, gradients)
        assert total is not None
        return total.values / draws, total.gradients / draws


@dataclass(frozen=True)
class Es:
    """Antithetic differences of function values along Gaussian directions: the gradient of the smoothed objective, jumps
    included, without autograd.

    The estimator with which Tramer et al. 2020 (arXiv:2002.08347, section 5) broke k-WTA. Unlike in the source, query points
    are clipped to [0, 1], beyond which a model need not answer: at pixels of 0 and 1 half the slope is left. Both ends of a
    difference meet the same randomness of a stochastic model, which then cancels.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    revision: ClassVar[int] = 1
    sigma: float | None = None
    kind: Literal["es"] = "es"
    relative_sigma: float | None = None
    draws: int = 50  # antithetic pairs

    def __post_init__(self) -> None:
        _require_noise(self)

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). 2 * `draws` + 1 forwards, no backward."""
        sigma = _sigma(self)
        with torch.no_grad():
            logits = model(x, rows)
            values = objective(logits)
            gradients = x.new_zeros((len(values), *x.shape))
            for noise in _noises(self.draws, x, rng.child("es")):
                stacked, payers = _stacked(objective, len(noise)), _repeated(rows, len(noise))
                with model.same_draws():
                    up = stacked(model(_shifted(x, sigma * noise), payers))
                    down = stacked(model(_shifted(x, -sigma * noise), payers))
                rise = (up - down).view(-1, *noise.shape[:2])
                gradients += torch.einsum("mdb,dbchw->mbchw", rise, noise)
        return Estimate(logits, values, gradients / (2 * sigma * self.draws))


@dataclass(frozen=True)
class Relaxed:
    """Autograd through the unmodified forward pass, with soft gradients for the operations that hide theirs.

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv:1802.00420), found automatically for any module: see
    `kwbench.relaxation`. `softness` multiplies scales that are taken from the data; `auto` is 0.3, or 1 for a stochastic model,
    whose own noise makes much of it smooth and wants the rest no sharper.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict
    revision: ClassVar[int] = 1
    kind: Literal["relaxed"] = "relaxed"
    softness: float | Literal["auto"] = "auto"
    draws: int = 1
    unreachable: Literal["raise", "zero"] = "raise"

    def __post_init__(self) -> None:
        if self.draws < 1 or (self.softness != "auto" and self.softness <= 0):
            raise ValueError(f"draws: {self.draws} and softness: {self.softness} must be positive")

    def __call__(
        self, model: Model, x: Tensor, objective: Objective, rng: SampleRandom, rows: Tensor | None = None
    ) -> Estimate:
        """Estimate at x (b, c, h, w). A backward for each of the m values and a forward a draw, or two where gradients that
        leave PyTorch must be guessed."""
        softness = self.softness
        if softness == "auto":
            softness = _SOFTNESS_IN_NOISE if model.stochastic else _SOFTNESS
        with model.running(partial(relaxed_pass, softness=softness)):
            once = Exact(unreachable=self.unreachable)
            return _mean([once(model, x, objective, rng, rows) for _ in range(self.draws)])


# By trial of 0.03 to 10 on k-WTA and LWTA networks, deterministic and stochastic, plain and adversarially trained. In noise
# anything from 0.5 to 2 does as well.
_SOFTNESS, _SOFTNESS_IN_NOISE = 0.3, 1.0


Gradient = Annotated[Exact | Eot | Smooth | Es | Relaxed, Field(discriminator="kind")]


def _mean(estimates: list[Estimate]) -> Estimate:
    return Estimate(
        logits=torch.stack([estimate.logits for estimate in estimates]).mean(dim=0),
        values=torch.stack([estimate.values for estimate in estimates]).mean(dim=0),
        gradients=torch.stack([estimate.gradients for estimate in estimates]).mean(dim=0),
    )


def passes(gradient: Gradient, values: int = 1) -> int:
    """The largest number of forwards and backwards that an estimate of so many values costs a sample."""
    match gradient:
        case Exact():
            return 1 + values
        case Eot(draws=draws):
            return _most(draws) * (1 + values)
        case Smooth(draws=draws):
            return 1 + _most(draws) * (1 + values)
        case Es(draws=draws):
            return 1 + 2 * draws
        case Relaxed(draws=draws):
            return draws * (2 + values)


def _most(draws: int | Literal["auto"]) -> int:
    return _MOST_DRAWS if draws == "auto" else draws


def with_more_draws(gradient: Gradient, times: int) -> Gradient | None:
    """The estimator with its draws doubled so many times; None where that is no choice: there are none, or it is `auto`."""
    if isinstance(gradient, Exact) or gradient.draws == "auto" or (isinstance(gradient, Relaxed) and gradient.draws == 1):
        return None
    return replace(gradient, draws=gradient.draws * 2**times)


# Numbers that a sample's generator draws together.
_CHUNK = 2**16


def _noises(draws: int, x: Tensor, rng: SampleRandom, at_once: int | None = None) -> Iterator[Tensor]:
    """`draws` standard normal images for each x (b, c, h, w), in pieces (d, b, c, h, w) of at most `at_once` draws.

    Several at once, because a generator a sample and draw costs more than a small network, and full tiles cost as much as
    padded ones. The numbers do not depend on `at_once`.
    """
    size = max(1, min(draws, _CHUNK // x[0].numel()))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        numbers = rng.normal(start, (count, *x.shape[1:])).transpose(0, 1)
        for first in range(0, count, at_once or count):
            yield numbers[first : first + (at_once or count)].to(x.device)


def _shifted(x: Tensor, shifts: Tensor) -> Tensor:
    """x (b, c, h, w) by each of the shifts (d, b, c, h, w), within the pixel range, as (d * b, c, h, w)."""
    return (x + shifts).clamp_(0, 1).flatten(0, 1)


def _stacked(objective: Objective, copies: int) -> Objective:
    """The objective for logits (copies * b, k), those of each copy of the batch in turn."""
    return lambda logits: torch.cat([objective(part) for part in logits.chunk(copies)], dim=1)


def _repeated(rows: Tensor | None, copies: int) -> Tensor | None:
    return None if rows is None else rows.repeat(copies)


def _of_some(objective: Objective, rows: Tensor, size: int) -> Objective:
    """The objective of a batch of so many rows, for the logits (r, k) of some of them alone."""
    return lambda logits: objective(logits.new_zeros((size, logits.shape[1])).index_copy(0, rows, logits))[:, rows]
