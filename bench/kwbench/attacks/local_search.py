"""Local search for discontinuous networks such as k-WTA: climbs along relaxed gradients, then random flips of values."""

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
# The first and last step size in eps. The last is small enough to stay within one linear piece of the network.
_FIRST_STEP, _LAST_STEP = 2.0, 0.01
# How many random numbers a search draws at once.
_CHUNK = 2**15


@dataclass(frozen=True)
class LocalSearch(Attack):
    """Climb along relaxed gradients towards each of the `targets` likeliest wrong classes, then flip values of the best images.

    Climb: a network with jumps consists of linear pieces, and its margin is often largest at an edge between two of them. Large
    steps overshoot such an edge. The relaxations are therefore sharper than is best for other attacks, and the step size falls
    to eps / 100. The start hardly matters, so every restart uses the next `softness` and the next of the `losses`.

    Flips: the `finalists` climbs of largest margin try `flips` flips each. A flip sets a few random values of the image to
    x + eps or x - eps (in l2 it moves them up or down), and is kept if the margin rises. Moon et al. 2019 (arXiv:1905.06635)
    search among such corners of the ball without gradients.

    On a deterministic model the search for a sample ends at its first misclassified image. On a stochastic model it never ends
    early. A flip is then kept if it has a larger mean margin than the current image over `draws` passes with the same random
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
                searches, successes = phase(model, searches, threat, restart)
                first = successes.best_of_each(1)
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
        """See Attack; the climbs follow relaxed gradients, the flips use none."""
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
        """See Attack; restarts are alike if they are whole cycles through `softness` and `losses`."""
        whole_cycles = self.restarts % math.lcm(len(self.softness), len(self.losses)) == 0
        return self if whole_cycles else self.doubled(1)

    def _climb(self, model: Model, searches: "_Searches", threat: ThreatModel, restart: int) -> tuple["_Searches", "_Searches"]:
        """Climb along relaxed gradients; return the searches that go on, and the successful ones."""
        loss = TARGETED[self.losses[restart % len(self.losses)]]
        gradient = Relaxed(softness=self.softness[restart % len(self.softness)], unreachable="zero")
        successes = searches.take(searches.row < 0)
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
                # The largest of several noisy margins is biased upwards, so keep the last iterate.
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
                    successes = successes.plus(searches.take(successful))
                    remaining = ~torch.isin(searches.row, searches.row[successful])
                    searches, z, before, slope = searches.take(remaining), z[remaining], before[remaining], slope[remaining]
            if step == self.steps or not len(z):
                break
            size = threat.radius * _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (step / self.steps)
            # If a gradient is NaN, flips may still succeed.
            ahead = project(z + size * steepest(slope.nan_to_num(), threat.norm), searches.x, threat)
            if step:
                ahead = project(z + _MOMENTUM * (ahead - z) + (1 - _MOMENTUM) * (z - before), searches.x, threat)
            z, before = ahead, z
        return searches, successes

    def _flip(self, model: Model, searches: "_Searches", threat: ThreatModel, restart: int) -> tuple["_Searches", "_Searches"]:
        """Try flips on the finalists; return the searches without a success, and the successful ones."""
        searches = searches.best_of_each(self.finalists)
        successes = searches.take(searches.row < 0)
        most_values = max(8, searches.x[0].numel() // 8) if len(searches.row) else 8
        size = 2 + 2 * most_values
        chunk = max(1, _CHUNK // size)
        for step in range(self.flips):
            if not len(searches.row):
                break
            if step % chunk == 0:
                numbers = searches.rng.uniform(f"flips from {step}", (min(chunk, self.flips - step), size)).to(
                    searches.x.device
                )
            z = _flipped(searches, numbers[:, step % chunk], most_values, threat)
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
                successes = successes.plus(searches.take(successful))
                remaining = ~torch.isin(searches.row, searches.row[successful])
                searches, numbers = searches.take(remaining), numbers[remaining]
        return searches, successes


@dataclass(frozen=True, slots=True)
class _Searches:
    """Searches in parallel, one for each sample and target; every field has one entry per search.

    `row` is the row of the sample in the batch, `z` the best image so far, `value` its targeted margin, and `rng` the source of
    random numbers.
    """

    row: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    z: Tensor
    value: Tensor
    rng: SampleRandom

    @staticmethod
    def of(x: Tensor, y: Tensor, likely: Tensor, rows: Tensor, threat: ThreatModel, rng: SampleRandom) -> "_Searches":
        """Return one search for each of `rows` and each of its `likely` (b, t) classes, at a random start in the ball."""
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
        """Return, for each sample, the `count` searches of largest margin."""
        order = self.value.argsort(descending=True, stable=True)
        order = order[self.row[order].argsort(stable=True)]
        row = self.row[order]
        first = torch.searchsorted(row, row)
        return self.take(order[torch.arange(len(row), device=row.device) - first < count])


def _flipped(searches: _Searches, numbers: Tensor, most_values: int, threat: ThreatModel) -> Tensor:
    """Return the image of each search with some values flipped: 1, 2, 4, ... of them, but at most `most_values`.

    `numbers` (b, 2 + 2 * most_values) are uniform random numbers. They decide how many values are flipped, which ones, and how.
    """
    # Powers of 2, because the last bit of a logarithm may depend on the position in the batch.
    count = 2 ** (numbers[:, :1] * most_values.bit_length()).long()
    position = (numbers[:, 2 : 2 + most_values] * searches.x[0].numel()).long().clamp_max(searches.x[0].numel() - 1)
    sign = torch.where(numbers[:, 2 + most_values :] < 0.5, -1.0, 1.0)
    chosen = torch.arange(most_values, device=position.device) < count
    x, z = searches.x.flatten(1), searches.z.flatten(1)
    if threat.norm == "linf":
        moved = x.gather(1, position) + threat.radius * sign
    else:
        reach = threat.radius / 2 ** (numbers[:, 1:2] * 5).long() / count.sqrt()
        moved = z.gather(1, position) + reach * sign
    # Write the values that are not chosen to one extra position after the image. If two values go to the same position, `amax`
    # keeps the larger one on every device.
    outside = torch.full_like(position, x.shape[1])
    padded = torch.cat([z, z[:, :1]], dim=1)
    padded = padded.scatter_reduce(1, torch.where(chosen, position, outside), moved, "amax", include_self=False)
    return project(padded[:, :-1].view_as(searches.z), searches.x, threat)
