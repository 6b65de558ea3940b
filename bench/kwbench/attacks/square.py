"""Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search on logits."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kwbench.attacks.attack import Attack, PrecisionOrAuto
from kwbench.attacks.search.losses import margin
from kwbench.attacks.search.trials import means_under_same_draws, misclassified, on_device, put_where, read
from kwbench.geometry import norms, project, total
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Steps whose random numbers are drawn at once: making a generator costs as much as a pass of a small network.
_CHUNK = 100


@dataclass(frozen=True)
class Square(Attack):
    """Random search: squares of extreme colour at random positions, kept if they raise the margin loss.

    The defaults are AutoAttack's: 5000 steps, p_init 0.8, one restart, the paper's schedule for 10,000 steps whatever
    `steps` is; `rescale_schedule` stretches it to `steps`, as the paper does. Squares reach the last row and column
    (algorithm 2), unlike in the authors' code.

    A sample is done as soon as it is misclassified; if `precision` is not float32, as soon as float32 confirms it. `auto` is
    that of Auto-PGD, without `bfloat16`, in which small gains of the loss are lost. On a stochastic model no sample is done
    early; at every step the candidate and the current image are compared by their mean loss over `draws` fresh passes
    each, in which both get the same random numbers.
    """

    norms = frozenset({"linf", "l2"})
    needs = "scores"

    steps: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescale_schedule: bool = False
    draws: int = 10
    precision: PrecisionOrAuto = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.draws < 1:
            raise ValueError("steps, restarts and draws must be at least 1")
        if not 0 < self.p_init <= 1:
            raise ValueError("p_init is a share of the image and must lie in (0, 1]")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        best, best_loss = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            for restart in range(self.restarts):
                stream = rng.child(f"restart {restart}").take(rows)
                z, loss, broken = self._search(model, x[rows], y[rows], threat, stream, rows=rows)
                better = broken | (loss > best_loss[rows])
                best[rows[better]], best_loss[rows[better]] = z[better], loss[better]
                rows = rows[~broken]
                if not len(rows):
                    break
        return best

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        if stochastic:
            return self.restarts * (1 + 2 * self.steps) * self.draws
        return self.restarts * (1 + self.steps) * (1 if self.search_precision == "float32" else 2)

    def doubled(self, times: int) -> "Square":
        """See Attack: more restarts."""
        return replace(self, restarts=self.restarts * 2**times)

    def other_half(self) -> "Square":
        """See Attack."""
        return self

    def _search(
        self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom, *, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best images, their losses, and which of them are broken (none for a stochastic model)."""
        propose = _Linf(x, threat) if threat.norm == "linf" else _L2(x, threat)
        best = propose.start(rng)
        (loss,), broken, _ = self._evaluate(model, [best], y, rows)
        # The samples that are still searched for, on the CPU and on the device.
        samples = np.flatnonzero(~read(broken)[0])
        active = on_device(samples, x)
        for step in range(self.steps):
            if not len(samples):
                break
            if step % _CHUNK == 0:
                count = min(_CHUNK, self.steps - step)
                numbers = rng.take(samples.tolist()).uniform(f"steps from {step}", (count, propose.numbers), device=x.device)
            labels, active_rows = y[active], rows[active]
            z = propose(best[active], active, self._share(step), numbers[:, step % _CHUNK])
            images = [z, best[active]] if model.stochastic else [z]
            (new_loss, *current_loss), newly_broken, may_be = self._evaluate(model, images, labels, active_rows)
            old_loss = current_loss[0] if current_loss else loss[active]
            better = (new_loss > old_loss) | newly_broken
            put_where(better, best, active, z)
            loss[active] = torch.where(better, new_loss, old_loss)
            # A GPU is waited for here, and nowhere else in a step in float32.
            held = ~read(newly_broken)[0] if may_be else None
            if held is not None and not held.all():
                broken[active] = newly_broken
                kept = on_device(np.flatnonzero(held), x)
                samples, active, numbers = samples[held], active[kept], numbers[kept]
        return best, loss, broken

    def _evaluate(self, model: Model, images: list[Tensor], y: Tensor, rows: Tensor) -> tuple[list[Tensor], Tensor, bool]:
        """Return the losses (b,) of each batch of images, which of the first are broken, and whether any may be: none for a
        stochastic model."""
        if not model.stochastic:
            with model.computing_in(self.search_precision):
                logits = model(images[0], rows)
            return [margin(logits, y)], *misclassified(model, images[0], logits, y, rows, self.search_precision)
        means = means_under_same_draws(model, images, lambda logits: margin(logits, y), rows, self.draws)
        return means, torch.zeros(len(y), dtype=torch.bool, device=y.device), False

    def _share(self, step: int) -> float:
        """Return the share of the image that a square covers (section 4.1)."""
        at = step * 10_000 / self.steps if self.rescale_schedule else step
        return float(self.p_init / 2 ** sum(at > halving for halving in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)))


def _positions(numbers: Tensor, largest: int) -> Tensor:
    """Return integers from 0 to `largest` from uniform numbers on [0, 1)."""
    return (numbers * (largest + 1)).long().clamp_max(largest)


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


class _Linf:
    """Algorithm 2: a square is set to x + eps or x - eps, one sign a channel. The search starts at vertical stripes of width
    1."""

    def __init__(self, x: Tensor, threat: ThreatModel) -> None:
        self.x, self.threat = x, threat
        self.numbers = 2 + x.shape[1]

    def start(self, rng: SampleRandom) -> Tensor:
        channels, _, width = self.x.shape[1:]
        signs = _signs(rng.uniform("stripes", (channels, 1, width), device=self.x.device))
        return project(self.x + self.threat.radius * signs, self.x, self.threat)

    def __call__(self, best: Tensor, rows: Tensor, share: float, numbers: Tensor) -> Tensor:
        height, width = best.shape[2:]
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        top, left = _positions(numbers[:, 0], height - side), _positions(numbers[:, 1], width - side)
        down = torch.arange(height, device=best.device) - top[:, None]
        across = torch.arange(width, device=best.device) - left[:, None]
        inside = ((down >= 0) & (down < side))[:, None, :, None] & ((across >= 0) & (across < side))[:, None, None, :]
        x = self.x[rows]
        extreme = x + self.threat.radius * _signs(numbers[:, 2:])[:, :, None, None]
        return project(torch.where(inside, extreme, best), x, self.threat)


class _L2:
    """Algorithm 3: the budget of one window and the unused part of eps move to another window, as two opposite bumps."""

    def __init__(self, x: Tensor, threat: ThreatModel) -> None:
        self.x, self.threat = x, threat
        self.numbers = 5 + x.shape[1]

    def start(self, rng: SampleRandom) -> Tensor:
        channels, height, width = self.x.shape[1:]
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        top, left = (height - down * side) // 2, (width - across * side) // 2
        signs = _signs(rng.uniform("tiles", (channels, down, across), device=self.x.device))
        turned = rng.uniform("turns", (down, across), device=self.x.device) < 0.5
        bump = _bump(side, self.x)
        tiles = torch.where(turned[:, None, :, :, None, None], bump.T, bump) * signs[..., None, None]
        delta = torch.zeros_like(self.x)
        delta[:, :, top : top + down * side, left : left + across * side] = tiles.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        return self._scaled(delta, self.x)

    def __call__(self, best: Tensor, rows: Tensor, share: float, numbers: Tensor) -> Tensor:
        x = self.x[rows]
        channels, height, width = x.shape[1:]
        side = max(round(math.sqrt(share * height * width)), 3)
        side = min(side + 1 - side % 2, height, width)
        delta = best - x
        give, take = (self._window(numbers[:, first], numbers[:, first + 1], side, height, width) for first in (0, 2))
        index = torch.arange(len(x), device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[None, :, None, None]
        giving, taking = (index, channel, *give), (index, channel, *take)

        budget = torch.zeros_like(delta)
        budget[giving], budget[taking] = delta[giving].square(), delta[taking].square()
        spare = (self.threat.radius**2 - total(delta.square())).clamp_min(0) / channels
        length = (budget.sum(dim=(2, 3)) + spare[:, None]).sqrt()[:, :, None, None]

        bump = _bump(side, x)
        turned = (numbers[:, 4] < 0.5)[:, None, None, None]
        fresh = torch.where(turned, bump.T, bump) * _signs(numbers[:, 5:])[:, :, None, None] + _unit(delta[giving])
        delta[taking] = 0
        delta[giving] = _unit(fresh) * length
        return self._scaled(delta, x)

    def _scaled(self, delta: Tensor, x: Tensor) -> Tensor:
        length = norms(delta, "l2").clamp_min(1e-12).view(-1, 1, 1, 1)
        return project(x + delta / length * self.threat.radius, x, self.threat)

    @staticmethod
    def _window(down: Tensor, across: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return row indices (b, 1, side, 1) and column indices (b, 1, 1, side)."""
        span = torch.arange(side, device=down.device)
        top, left = _positions(down, height - side), _positions(across, width - side)
        return (top[:, None] + span)[:, None, :, None], (left[:, None] + span)[:, None, None, :]


def _unit(window: Tensor) -> Tensor:
    """Scale each channel's window (b, c, s, s) to length 1."""
    return window / window.square().sum(dim=(2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def _bump(side: int, like: Tensor) -> Tensor:
    """Return two opposite pyramids of height 1 / distance^2, one above the other, as (side, side) of length 1 (eq. 2)."""
    bump = torch.cat([_pyramid(side // 2, side, like), -_pyramid(side - side // 2, side, like)])
    return bump / bump.square().sum().sqrt()


def _pyramid(height: int, width: int, like: Tensor) -> Tensor:
    if not height:
        return like.new_zeros((0, width))
    down = (torch.arange(height, device=like.device) - height // 2).abs()
    across = (torch.arange(width, device=like.device) - width // 2).abs()
    ring = torch.maximum(down[:, None], across[None, :])
    # Nested rectangles: ring r lies in the rectangles from r outwards, the i-th of which adds 1 / (i + 1)^2.
    reach = max(height // 2, width // 2) + 1
    heights = torch.tensor([sum((i + 1) ** -2 for i in range(r, reach)) for r in range(reach)], device=like.device)
    pyramid = heights.to(like.dtype)[ring.clamp_max(reach - 1)]
    return pyramid / pyramid.square().sum().sqrt()
