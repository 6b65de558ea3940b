"""Local search among the corners of the ball, from where soft gradients end: for networks with jumps, such as k-WTA."""

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

# As in Auto-PGD: how much of a step is the new one.
_MOMENTUM = 0.75
# Step sizes fall from the first to the last of these, in eps: so small a last step stays within one piece of the function.
_FIRST_STEP, _LAST_STEP = 2.0, 0.01
# Random numbers a search draws together.
_CHUNK = 2**15


@dataclass(frozen=True)
class LocalSearch(Attack):
    """For each of the likeliest other classes a climb along relaxed gradients; then the best `finalists` go on by flips.

    The margin of such a network is largest at an edge between its linear pieces, where ascent on one piece alone overshoots:
    hence relaxations sharper than is best for a first look, and step sizes that fall to eps / 100. Starts are soon forgotten;
    what leads restarts to other places is that each takes the next `softness` and the next of the `losses`. A flip sets a few
    values of the image, drawn at random, to x + eps or x - eps (in l2 it moves them either way), and stays where the margin
    rises: search among corners, as Moon et al. 2019 (arXiv:1905.06635) do without gradients.
    Deterministic models: a sample ends at its first misclassified image. On a stochastic model none does, and a flip and what
    it would replace are compared on the means of `draws` passes each, in which both meet the same randomness.
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
            # Samples side by side for all targets: few that are left still fill a tile.
            lanes = _Lanes.of(x, y, likely, rows, threat, rng.child(f"restart {restart}"))
            for phase in (self._climb, self._flip):
                lanes, won = phase(model, lanes, threat, restart)
                first = won.best_of_each(1)
                best[first.row], highest[first.row] = first.z, torch.inf
            found = lanes.best_of_each(1)
            found = found.take(found.value > highest[found.row])
            best[found.row], highest[found.row] = found.z, found.value
            rows = rows[highest[rows] < torch.inf]
            if not len(rows):
                break
        return best

    @property
    def evidence_group(self) -> EvidenceGroup:
        """See Attack; the climbs follow relaxed gradients, the flips none."""
        return "softened"

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        climb = self.steps * Relaxed().passes() + 1
        flips = self.flips * (2 * self.draws if stochastic else 1)
        return 1 + self.restarts * (self.targets * climb + min(self.finalists, self.targets) * flips)

    def doubled(self, times: int) -> "LocalSearch":
        """See Attack: more restarts."""
        return replace(self, restarts=self.restarts * 2**times)

    def other_half(self) -> "LocalSearch":
        """See Attack; restarts are alike after a round of every softness with every loss."""
        rounds = self.restarts % math.lcm(len(self.softness), len(self.losses)) == 0
        return self if rounds else self.doubled(1)

    def _climb(self, model: Model, lanes: "_Lanes", threat: ThreatModel, restart: int) -> tuple["_Lanes", "_Lanes"]:
        loss = TARGETED[self.losses[restart % len(self.losses)]]
        gradient = Relaxed(softness=self.softness[restart % len(self.softness)], unreachable="zero")
        won = lanes.take(lanes.row < 0)
        z, before = lanes.z, lanes.z
        for step in range(self.steps + 1):
            target, y = lanes.target, lanes.y

            def objective(logits: Tensor, y: Tensor = y, target: Tensor = target) -> Tensor:
                return loss(logits, y, target)[None]

            if step == self.steps:
                with torch.no_grad():
                    logits, slope = model(z, lanes.row), torch.zeros_like(z)
            else:
                estimate = gradient(model, z, objective, lanes.rng.child(f"step {step}"), lanes.row)
                logits, slope = estimate.logits, estimate.gradients[0]
            value = targeted_margin(logits, y, target)
            if model.stochastic:
                # The highest of noisy values would be the luckiest; the last is where it led.
                lanes = replace(lanes, z=z, value=value.nan_to_num(nan=torch.inf))
            else:
                fell = fooled(logits, y)
                higher = value > lanes.value
                lanes = replace(
                    lanes,
                    z=torch.where((higher | fell).view(-1, 1, 1, 1), z, lanes.z),
                    value=torch.where(higher, value, lanes.value),
                )
                if bool(fell.any()):
                    won = won.plus(lanes.take(fell))
                    left = ~torch.isin(lanes.row, lanes.row[fell])
                    lanes, z, before, slope = lanes.take(left), z[left], before[left], slope[left]
            if step == self.steps or not len(z):
                break
            size = threat.radius * _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (step / self.steps)
            # Where a gradient is not a number, flips may still lead on.
            ahead = project(z + size * steepest(slope.nan_to_num(), threat.norm), lanes.x, threat)
            if step:
                ahead = project(z + _MOMENTUM * (ahead - z) + (1 - _MOMENTUM) * (z - before), lanes.x, threat)
            z, before = ahead, z
        return lanes, won

    def _flip(self, model: Model, lanes: "_Lanes", threat: ThreatModel, restart: int) -> tuple["_Lanes", "_Lanes"]:
        lanes = lanes.best_of_each(self.finalists)
        won = lanes.take(lanes.row < 0)
        most = max(8, lanes.x[0].numel() // 8) if len(lanes.row) else 8
        size = 2 + 2 * most
        chunk = max(1, _CHUNK // size)
        for step in range(self.flips):
            if not len(lanes.row):
                break
            if step % chunk == 0:
                numbers = lanes.rng.uniform(f"flips from {step}", (min(chunk, self.flips - step), size)).to(lanes.x.device)
            z = _flipped(lanes, numbers[:, step % chunk], most, threat)
            with torch.no_grad():
                if model.stochastic:
                    y, target = lanes.y, lanes.target

                    def margins(logits: Tensor, y: Tensor = y, target: Tensor = target) -> Tensor:
                        return targeted_margin(logits, y, target)

                    value, before = means_under_same_draws(model, [z, lanes.z], margins, lanes.row, self.draws)
                    fell = torch.zeros_like(lanes.row, dtype=torch.bool)
                else:
                    logits, before = model(z, lanes.row), lanes.value
                    value, fell = targeted_margin(logits, lanes.y, lanes.target), fooled(logits, lanes.y)
            better = (value > before) | fell
            lanes = replace(
                lanes,
                z=torch.where(better.view(-1, 1, 1, 1), z, lanes.z),
                value=torch.where(better, value, before),
            )
            if bool(fell.any()):
                won = won.plus(lanes.take(fell))
                left = ~torch.isin(lanes.row, lanes.row[fell])
                lanes, numbers = lanes.take(left), numbers[left]
        return lanes, won


@dataclass(frozen=True, slots=True)
class _Lanes:
    """Searches side by side, one for each sample and target: which `row` of the batch each is of, where it stands, the highest
    margin there, and its own random numbers."""

    row: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    z: Tensor
    value: Tensor
    rng: SampleRandom

    @staticmethod
    def of(x: Tensor, y: Tensor, likely: Tensor, rows: Tensor, threat: ThreatModel, rng: SampleRandom) -> "_Lanes":
        row, target = rows.repeat_interleave(likely.shape[1]), likely[rows].flatten()
        samples = tuple(f"{rng.samples[r]} to {t}" for r, t in zip(row.tolist(), target.tolist(), strict=True))
        own = replace(rng, samples=samples)
        value = torch.full((len(row),), -torch.inf, device=x.device)
        noise = own.uniform("start", x.shape[1:], -threat.radius, threat.radius).to(x.device)
        return _Lanes(row, x[row], y[row], target, project(x[row] + noise, x[row], threat), value, own)

    def take(self, kept: Tensor) -> "_Lanes":
        """Some of them, by mask or index."""
        tensors = {each.name: getattr(self, each.name)[kept] for each in fields(self) if each.name != "rng"}
        chosen = kept.nonzero().squeeze(1) if kept.dtype == torch.bool else kept
        return _Lanes(**tensors, rng=self.rng.take(chosen))

    def plus(self, more: "_Lanes") -> "_Lanes":
        """These and more."""
        tensors = {
            each.name: torch.cat([getattr(self, each.name), getattr(more, each.name)])
            for each in fields(self)
            if each.name != "rng"
        }
        return _Lanes(**tensors, rng=replace(self.rng, samples=self.rng.samples + more.rng.samples))

    def best_of_each(self, count: int) -> "_Lanes":
        """Of each sample the `count` of highest margin."""
        order = self.value.argsort(descending=True, stable=True)
        order = order[self.row[order].argsort(stable=True)]
        row = self.row[order]
        first = torch.searchsorted(row, row)
        return self.take(order[torch.arange(len(row), device=row.device) - first < count])


def _flipped(lanes: _Lanes, numbers: Tensor, most: int, threat: ThreatModel) -> Tensor:
    """Each z with 1, 2, 4, ... up to `most` values flipped; `numbers` (b, 2 + 2 most) are uniform."""
    # Powers of 2: a logarithm's last bit may depend on the place in the batch.
    count = 2 ** (numbers[:, :1] * most.bit_length()).long()
    place = (numbers[:, 2 : 2 + most] * lanes.x[0].numel()).long().clamp_max(lanes.x[0].numel() - 1)
    sign = torch.where(numbers[:, 2 + most :] < 0.5, -1.0, 1.0)
    chosen = torch.arange(most, device=place.device) < count
    x, z = lanes.x.flatten(1), lanes.z.flatten(1)
    if threat.norm == "linf":
        moved = x.gather(1, place) + threat.radius * sign
    else:
        reach = threat.radius / 2 ** (numbers[:, 1:2] * 5).long() / count.sqrt()
        moved = z.gather(1, place) + reach * sign
    # What is not chosen goes to a place behind the image. Of two values for one place the larger counts, on any device.
    behind = torch.full_like(place, x.shape[1])
    room = torch.cat([z, z[:, :1]], dim=1)
    room = room.scatter_reduce(1, torch.where(chosen, place, behind), moved, "amax", include_self=False)
    return project(room[:, :-1].view_as(lanes.z), lanes.x, threat)
