"""Local search among corners of the ball after climbs on relaxed gradients: for networks with jumps, such as k-WTA."""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kwbench.attacks.attack import Attack
from kwbench.attacks.search.losses import TARGETED, LossName, fooled, other_logits, targeted_margin
from kwbench.attacks.search.trials import means_under_same_draws
from kwbench.geometry import project, steepest
from kwbench.gradients import EvidenceGroup, Relaxed
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# The weight of the new step, as in Auto-PGD.
_MOMENTUM = 0.75
# The first and last step size in eps; the last is small enough to stay within one linear piece of the function.
_FIRST_STEP, _LAST_STEP = 2.0, 0.01
# Random numbers that a search draws at once.
_CHUNK = 2**15


@dataclass(frozen=True)
class LocalSearch(Attack):
    """Climb along relaxed gradients for each of the likeliest other classes, then improve the best `finalists` by flips.

    The margin of such a network is largest at an edge between its linear pieces, where a step along one piece overshoots. Hence
    the relaxations are sharper than is best for other attacks, and step sizes fall to eps / 100. The start hardly matters;
    restarts differ because each takes the next `softness` and the next of the `losses`. A flip sets a few random values of the
    image to x + eps or x - eps (in l2 it moves them up or down), and is kept if the margin rises: a search among corners, which
    Moon et al. 2019 (arXiv:1905.06635) do without gradients.

    Deterministic models: a sample is done at its first misclassified image. On a stochastic model no sample is done early; a
    flip and the current image are compared by their mean margins over `draws` passes each, in which both get the same random
    numbers.
    """

    norms = frozenset({"linf", "l2"})
    needs = "gradients"

    steps: int = 40
    flips: int = 300
    restarts: int = 6
    targets: int = 9
    finalists: int = 4
    softness: tuple[float, ...] = (0.06, 0.1, 0.03)
    losses: tuple[LossName, ...] = ("margin", "cross_entropy")
    draws: int = 4

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets", "finalists", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.flips < 0:
            raise ValueError("flips must not be negative")
        if not self.softness or any(softness <= 0 for softness in self.softness):
            raise ValueError("softness must be a list of positive numbers")
        if not self.losses:
            raise ValueError("losses must name at least one")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        best, highest = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            others = other_logits(model(x, rows), y)
        likely = others.argsort(dim=1, descending=True, stable=True)[:, : min(self.targets, model.classes - 1)]
        for restart in range(self.restarts):
            # Climb for all targets in parallel, so that few remaining samples still fill a tile.
            searches = _Searches.of(x, y, likely, rows, threat, rng.child(f"restart {restart}"))
            for phase in (self._climb, self._flip):
                searches, won = phase(model, searches, threat, restart)
                first = won.best_of_each(1)
                best[first.row], highest[first.row] = first.z, torch.inf
            improved = searches.best_of_each(1)
            improved = improved.take(improved.value > highest[improved.row])
            best[improved.row], highest[improved.row] = improved.z, improved.value
            rows = rows[highest[rows] < torch.inf]
            if not len(rows):
                break
        return best

    @property
    def evidence_group(self) -> EvidenceGroup:
        """See Attack; the climbs follow relaxed gradients, the flips none."""
        return "softened"

    def revisions(self) -> dict[str, int]:
        """See Attack; the climbs follow relaxed gradients."""
        return {**super().revisions(), **Relaxed().revisions()}

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        climb = self.steps * Relaxed().passes() + 1
        flips = self.flips * (2 * self.draws if stochastic else 1)
        return 1 + self.restarts * (self.targets * climb + min(self.finalists, self.targets) * flips)

    def doubled(self, times: int) -> "LocalSearch":
        """See Attack: more restarts."""
        return replace(self, restarts=self.restarts * 2**times)

    def other_half(self) -> "LocalSearch":
        """See Attack; restarts are alike after every softness has been combined with every loss."""
        rounds = self.restarts % math.lcm(len(self.softness), len(self.losses)) == 0
        return self if rounds else self.doubled(1)

    def _climb(self, model: Model, searches: "_Searches", threat: ThreatModel, restart: int) -> tuple["_Searches", "_Searches"]:
        loss = TARGETED[self.losses[restart % len(self.losses)]]
        gradient = Relaxed(softness=self.softness[restart % len(self.softness)], unreachable="zero")
        won = searches.take(searches.row < 0)
        z, before = searches.z, searches.z
        for step in range(self.steps + 1):
            target, y = searches.target, searches.y

            def objective(logits: Tensor, y: Tensor = y, target: Tensor = target) -> Tensor:
                return loss(logits, y, target)[None]

            if step == self.steps:
                with torch.no_grad():
                    logits, slope = model(z, searches.row), torch.zeros_like(z)
            else:
                estimate = gradient(model, z, objective, searches.rng.child(f"step {step}"), searches.row)
                logits, slope = estimate.logits, estimate.gradients[0]
            value = targeted_margin(logits, y, target)
            if model.stochastic:
                # The highest of several noisy values would be the luckiest, so keep the last iterate.
                searches = replace(searches, z=z, value=value.nan_to_num(nan=torch.inf))
            else:
                successful = fooled(logits, y)
                higher = value > searches.value
                searches = replace(
                    searches,
                    z=torch.where((higher | successful).view(-1, 1, 1, 1), z, searches.z),
                    value=torch.where(higher, value, searches.value),
                )
                if bool(successful.any()):
                    won = won.plus(searches.take(successful))
                    left = ~torch.isin(searches.row, searches.row[successful])
                    searches, z, before, slope = searches.take(left), z[left], before[left], slope[left]
            if step == self.steps or not len(z):
                break
            size = threat.radius * _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (step / self.steps)
            # If a gradient is NaN, flips may still succeed.
            ahead = project(z + size * steepest(slope.nan_to_num(), threat.norm), searches.x, threat)
            if step:
                ahead = project(z + _MOMENTUM * (ahead - z) + (1 - _MOMENTUM) * (z - before), searches.x, threat)
            z, before = ahead, z
        return searches, won

    def _flip(self, model: Model, searches: "_Searches", threat: ThreatModel, restart: int) -> tuple["_Searches", "_Searches"]:
        searches = searches.best_of_each(self.finalists)
        won = searches.take(searches.row < 0)
        most = max(8, searches.x[0].numel() // 8) if len(searches.row) else 8
        size = 2 + 2 * most
        chunk = max(1, _CHUNK // size)
        for step in range(self.flips):
            if not len(searches.row):
                break
            if step % chunk == 0:
                numbers = searches.rng.uniform(f"flips from {step}", (min(chunk, self.flips - step), size)).to(
                    searches.x.device
                )
            z = _flipped(searches, numbers[:, step % chunk], most, threat)
            with torch.no_grad():
                if model.stochastic:
                    y, target = searches.y, searches.target

                    def margins(logits: Tensor, y: Tensor = y, target: Tensor = target) -> Tensor:
                        return targeted_margin(logits, y, target)

                    value, before = means_under_same_draws(model, [z, searches.z], margins, searches.row, self.draws)
                    successful = torch.zeros_like(searches.row, dtype=torch.bool)
                else:
                    logits, before = model(z, searches.row), searches.value
                    value, successful = targeted_margin(logits, searches.y, searches.target), fooled(logits, searches.y)
            better = (value > before) | successful
            searches = replace(
                searches,
                z=torch.where(better.view(-1, 1, 1, 1), z, searches.z),
                value=torch.where(better, value, before),
            )
            if bool(successful.any()):
                won = won.plus(searches.take(successful))
                left = ~torch.isin(searches.row, searches.row[successful])
                searches, numbers = searches.take(left), numbers[left]
        return searches, won


@dataclass(frozen=True, slots=True)
class _Searches:
    """Searches in parallel, one for each sample and target: the `row` of its sample in the batch, its image `z` and the margin
    there, and its random numbers."""

    row: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    z: Tensor
    value: Tensor
    rng: SampleRandom

    @staticmethod
    def of(x: Tensor, y: Tensor, likely: Tensor, rows: Tensor, threat: ThreatModel, rng: SampleRandom) -> "_Searches":
        row, target = rows.repeat_interleave(likely.shape[1]), likely[rows].flatten()
        samples = tuple(f"{rng.samples[r]} to {t}" for r, t in zip(row.tolist(), target.tolist(), strict=True))
        own = replace(rng, samples=samples)
        value = torch.full((len(row),), -torch.inf, device=x.device)
        noise = own.uniform("start", x.shape[1:], -threat.radius, threat.radius).to(x.device)
        return _Searches(row, x[row], y[row], target, project(x[row] + noise, x[row], threat), value, own)

    def take(self, kept: Tensor) -> "_Searches":
        """Return the searches in a mask or index."""
        tensors = {field.name: getattr(self, field.name)[kept] for field in fields(self) if field.name != "rng"}
        chosen = kept.nonzero().squeeze(1) if kept.dtype == torch.bool else kept
        return _Searches(**tensors, rng=self.rng.take(chosen))

    def plus(self, more: "_Searches") -> "_Searches":
        """Return these searches and `more`."""
        tensors = {
            field.name: torch.cat([getattr(self, field.name), getattr(more, field.name)])
            for field in fields(self)
            if field.name != "rng"
        }
        return _Searches(**tensors, rng=replace(self.rng, samples=self.rng.samples + more.rng.samples))

    def best_of_each(self, count: int) -> "_Searches":
        """Return the `count` searches of highest margin of each sample."""
        order = self.value.argsort(descending=True, stable=True)
        order = order[self.row[order].argsort(stable=True)]
        row = self.row[order]
        first = torch.searchsorted(row, row)
        return self.take(order[torch.arange(len(row), device=row.device) - first < count])


def _flipped(searches: _Searches, numbers: Tensor, most: int, threat: ThreatModel) -> Tensor:
    """Return each z with 1, 2, 4, ... up to `most` values flipped; `numbers` (b, 2 + 2 most) are uniform."""
    # Powers of 2, because the last bit of a logarithm may depend on the position in the batch.
    count = 2 ** (numbers[:, :1] * most.bit_length()).long()
    position = (numbers[:, 2 : 2 + most] * searches.x[0].numel()).long().clamp_max(searches.x[0].numel() - 1)
    sign = torch.where(numbers[:, 2 + most :] < 0.5, -1.0, 1.0)
    chosen = torch.arange(most, device=position.device) < count
    x, z = searches.x.flatten(1), searches.z.flatten(1)
    if threat.norm == "linf":
        moved = x.gather(1, position) + threat.radius * sign
    else:
        reach = threat.radius / 2 ** (numbers[:, 1:2] * 5).long() / count.sqrt()
        moved = z.gather(1, position) + reach * sign
    # Values that are not chosen go to a position behind the image. Of two values for one position the larger wins on any
    # device.
    outside = torch.full_like(position, x.shape[1])
    padded = torch.cat([z, z[:, :1]], dim=1)
    padded = padded.scatter_reduce(1, torch.where(chosen, position, outside), moved, "amax", include_self=False)
    return project(padded[:, :-1].view_as(searches.z), searches.x, threat)
