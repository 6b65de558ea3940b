"""Auto-PGD (Croce and Hein 2020, arXiv:2003.01690)."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
from torch import Tensor

from kwbench.attacks.attack import ModelFacts, RestartedAttack
from kwbench.attacks.search.lookahead import looks, margin_ahead, margin_here, to_look_at
from kwbench.attacks.search.losses import (
    LOSSES,
    TARGETED,
    LossName,
    fooled,
    margin,
    not_finite,
    other_logits,
    probability_margin,
)
from kwbench.attacks.search.trials import misclassified
from kwbench.geometry import norms, project, random_start, steepest, total
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import Norm, ThreatModel

# Algorithm 1's: how much of a step is the new one, and the share of rising steps below which the step size is halved.
_MOMENTUM, _RHO = 0.75, 0.75
# How close `focus: auto` wants a target after a third of the steps: all of 42 samples that fell to targets on two networks were
# that close then, and most of those that held were not.
_FOCUS = 0.1
# The least merit of a lane that succeeded.
_BROKEN = 3.0
_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2"}


@dataclass(frozen=True)
class Apgd(RestartedAttack):
    """Steepest ascent with momentum, from step size 2 * eps on, which is halved at checkpoints where the loss rose too seldom.

    The defaults are AutoAttack's: 100 steps, one restart. With `targets` the targeted form of the loss is raised for each of
    the k most promising classes: those nearest by a linear estimate, logit gap over the dual norm of its gradient (MALT,
    arXiv:2407.02240); all of them, if there are no more, are not put in order where they climb side by side.

    Deterministic models: of each sample the first misclassified iterate is proposed, and with `early_exit` the search ends
    there; without one, the iterate of highest loss. The targets of a sample climb side by side, and after the first climb all
    further restarts do. With `finalists`, those that come closest go on: three times so many after a sixth of the steps, so
    many after a third, and only they have further restarts. With `focus`, from 0 to 1, a third of the steps must bring a target
    close: to within so much of the true class's probability by that of another, or so far that at its pace the climb would end
    there. What stays further off does not go on, nor what ends further off start again. `auto` is what an evaluation makes of
    it: 0.1 if nothing in the model hides its gradient; elsewhere what is far may be one step away, and all go on.
    In `precision` folded, gradients are of the model with its batch norms folded into its convolutions, float32 having the last
    word on every success; in bfloat16 five sixths of the first climb are rounded, and its end and further restarts folded.
    `auto` likewise: bfloat16 in linf, where steps go by signs alone, on exact gradients, if it is quicker and nothing in the
    model hides its gradient; else folded, where there is what to fold and nothing hides; else float32.
    Stochastic models: one target after the other. The step size follows a cosine from 2 * eps to eps / 20, because noise would
    halve it at every checkpoint (`schedule: auto`; also for `smooth` and `es` gradients, whose noise is their own). The start,
    the last iterate and that of the highest mean loss, of every restart and target, are compared by how often each fails in
    `selection_draws` fresh draws.
    """

    norms = frozenset({"linf", "l2"})
    needs = "gradients"

    steps: int = 100
    restarts: int = 1
    loss: LossName = "cross_entropy"
    targets: int = 0
    random_start: bool = True
    gradient: Gradient = EXACT
    schedule: Literal["auto", "adaptive", "cosine"] = "auto"
    early_exit: bool = True
    selection_draws: int = 20
    focus: float | Literal["auto"] | None = None
    finalists: int | None = None
    precision: Precision | Literal["auto"] = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.selection_draws < 1:
            raise ValueError("steps, restarts and selection_draws must be at least 1")
        if self.targets < 0:
            raise ValueError("targets must not be negative; 0 is the untargeted attack")
        if self.finalists is not None and not (self.finalists >= 1 and self.targets):
            raise ValueError("finalists are so many of the targets, at least 1")
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without a random start all take the same path")
        if not (self.reach == math.inf or 0 < self.reach <= 1):
            raise ValueError(f"focus: {self.focus} is a difference of probabilities and must lie in (0, 1]")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        targets = self._targets(model, x, y, threat, rng) if self.targets else y[:, None]
        if model.stochastic:
            return self._most_failing(model, x, y, targets, threat, rng)
        best, score = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        if not len(x):
            return best

        def climb(chosen: Tensor, wanted: Tensor, numbers: SampleRandom, *, first: bool) -> Tensor:
            """Let lanes of some samples (r,) climb, and propose what is better than what was.

            There is one from each of s starts to each of m targets that is `wanted` (s, r, m). Returns how close each target
            came, as (r, m).
            """
            at = (start, place, turn) = wanted.nonzero(as_tuple=True)
            row = chosen[place]
            stream = numbers.lanes(row, start * targets.shape[1] + turn)
            z = random_start(x[row], threat, stream) if self.random_start else x[row].clone()
            lanes = _Place.at(z, x[row], y[row], targets[row, turn], row, 2 * threat.radius)
            rounded = self.rounded_steps if first else 0
            found = _Climb(self, model, threat, stream, lanes, rounded).to_success(turn, narrowing=first)
            # Of each sample that of its lanes which came farthest; a lane without a way on leaves no sample standing.
            merit, near = (torch.full(wanted.shape, -torch.inf, device=x.device) for _ in range(2))
            merit[at], near[at] = found.merit, found.closest
            lane = torch.zeros(wanted.shape, dtype=torch.long, device=x.device)
            lane[at] = torch.arange(len(row), device=x.device)
            highest, which = merit.transpose(0, 1).flatten(1).max(dim=1)
            better = highest > score[chosen]
            score[chosen[better]] = highest[better]
            best[chosen[better]] = found.images[lane.transpose(0, 1).flatten(1).gather(1, which[:, None]).squeeze(1)[better]]
            return near.amax(dim=0)

        every = torch.ones((1, *targets.shape), dtype=torch.bool, device=x.device)
        closest = climb(torch.arange(len(x), device=x.device), every, rng.child("restart 0"), first=True)
        again = self._again(closest) & (score < _BROKEN)[:, None]
        rows, starts = again.any(dim=1).nonzero().squeeze(1), self.restarts - 1
        # All further restarts of a sample climb side by side, so that few samples still fill a pass; of many samples no more
        # lanes at once than there were in the first climb.
        parts = min(len(rows), -(-starts * int(again.sum()) // targets.numel()))
        for part in torch.tensor_split(rows, parts) if parts else ():
            climb(part, again[part].expand(starts, -1, -1), rng.child("further restarts"), first=False)
        return best

    def _most_failing(
        self, model: Model, x: Tensor, y: Tensor, targets: Tensor, threat: ThreatModel, rng: SampleRandom
    ) -> Tensor:
        """The proposals (b, c, h, w) for a stochastic model."""
        best, score = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            for turn in range(targets.shape[1]):
                stream = rng.take(rows).child(f"restart {restart} target {turn}")
                start = random_start(x[rows], threat, stream) if self.random_start else x[rows].clone()
                place = _Place.at(start, x[rows], y[rows], targets[rows, turn], rows, 2 * threat.radius)
                for z in _Climb(self, model, threat, stream, place).to_the_end():
                    found = self._failures(model, z, y[rows], rows)
                    better = found > score[rows]
                    best[rows[better]], score[rows[better]] = z[better], found[better]
                rows = rows[score[rows] < 1]
                if not len(rows):
                    return best
        return best

    def _again(self, closest: Tensor) -> Tensor:
        """Which targets (b, m) of each sample a further restart makes for, by the closest that it came to them."""
        again = closest >= -self.reach
        if self.finalists is not None:
            again &= _ranks(closest) < self.finalists
        return again

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        if stochastic:
            climbs = self.restarts * max(self.targets, 1)
            search = climbs * (self.steps * self.gradient.passes() + 3 * self.selection_draws)
        else:
            lanes = [max(self.targets, 1), *(self.lanes_after(step) for step in range(self.steps))]
            climbing = sum(lanes[:-1]) + (self.restarts - 1) * self.steps * lanes[-1]
            ending = self.restarts * lanes[-1]
            confirming = climbing + ending if self.precision not in ("float32", "auto") else 0
            looking = self.restarts * looks(self.steps - 1) if self.looks_ahead else 0
            search = climbing * self.gradient.passes() + ending + confirming + looking
        return search + (1 + self.gradient.passes(self._looked_at()) if self.targets else 0)

    def resolved(self, facts: ModelFacts) -> Self:
        """See Attack."""
        attack = super().resolved(facts)
        if attack.precision == "auto":
            tolerant = attack.gradient.tolerates_rounding
            attack = replace(attack, precision=facts.search_precision if tolerant else facts.unrounded_precision)
        if attack.focus == "auto":
            attack = replace(attack, focus=None if facts.hides_gradients else _FOCUS)
        return attack

    @property
    def rounded_steps(self) -> int:
        """How many steps of the first climb are in rounded arithmetic; those of the last sixth are too small for it."""
        return -(-5 * self.steps // 6) if self.precision == "bfloat16" else 0

    @property
    def looks_ahead(self) -> bool:
        """Whether, of a deterministic model, it looks before it asks for gradients; of many targets few are ever met."""
        return self.early_exit and not self.targets

    @property
    def reach(self) -> float:
        """How far below the true class, as `focus`, a target may stay to be worth going on."""
        return math.inf if self.focus is None or self.focus == "auto" else self.focus

    @property
    def third(self) -> int:
        """After how many steps of the first climb it shows who goes on."""
        return -(-self.steps // 3)

    @property
    def sixth(self) -> int:
        """After how many steps of it most targets of a sample are given up for its finalists."""
        return -(-self.steps // 6)

    def goes_on(self, before: Tensor, closest: Tensor) -> Tensor:
        """Who after a third of the steps (l,) is in focus, or would come all the way at the pace since a sixth of them.

        Both are how close, as probability margins (l,), a lane had come by then, below zero.
        """
        stretches = (self.steps - self.third) / max(self.third - self.sixth, 1)
        return (closest >= -self.reach) | (closest + stretches * (closest - before) >= 0)

    def adapts(self, model: Model) -> bool:
        """Whether the step size follows the loss; noise in it, or in the direction, would halve it at every checkpoint."""
        noisy = model.stochastic or self.gradient.noisy
        return self.schedule == "adaptive" or (self.schedule == "auto" and not noisy)

    def _targets(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """The classes (b, m) to make for, the nearest first; by logit where gradients say nothing. Where all of them climb side
        by side, their order is nothing to ask the model for.
        """
        rows = torch.arange(len(x), device=x.device)
        if not model.stochastic and self.targets >= model.classes - 1:
            classes = torch.arange(model.classes, device=x.device).expand(len(x), -1)
            return classes[classes != y[:, None]].view(len(x), -1)
        with torch.no_grad():
            others = other_logits(model(x, rows), y)
        likely = others.argsort(dim=1, descending=True, stable=True)[:, : min(self._looked_at(), model.classes - 1)]

        def gaps(logits: Tensor) -> Tensor:
            return (logits.gather(1, likely) - logits.gather(1, y[:, None])).T

        estimate = self.gradient(model, x, gaps, rng.child("targets"), rows)
        slopes = torch.stack([norms(gradient, _DUAL[threat.norm]) for gradient in estimate.gradients])
        far = (-estimate.values / slopes).T
        far = torch.where(far.isfinite(), far, torch.inf)
        return likely.gather(1, far.argsort(dim=1, stable=True))[:, : self.targets]

    def lanes_after(self, steps: int) -> int:
        """The most targets of a sample that a first restart still makes for after so many steps."""
        lanes = max(self.targets, 1)
        if self.finalists is None or steps < self.sixth:
            return lanes
        return min(lanes, self.finalists if steps >= self.third else 3 * self.finalists)

    def _looked_at(self) -> int:
        """How many classes, if there are as many others, are looked at to choose the targets; MALT orders 100 to choose 9."""
        return max(9, 4 * self.targets)

    def _failures(self, model: Model, z: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """The share of draws (b,) that z fails, at least 1 if all; the mean margin decides between equals."""
        failures, margins = torch.zeros(len(z), device=z.device), torch.zeros(len(z), device=z.device)
        with torch.no_grad():
            for _ in range(self.selection_draws):
                logits = model(z, rows)
                failures += fooled(logits, y)
                margins += margin(logits, y).nan_to_num(nan=1e30, posinf=1e30, neginf=-1e30)
        mean = margins / self.selection_draws
        # Between 0 and half a draw.
        return (failures + (1 + mean / (1 + mean.abs())) / 4) / self.selection_draws


@dataclass(frozen=True, slots=True)
class _Place:
    """Where each sample of a search stands; every field has one entry a sample."""

    index: Tensor
    payer: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    z: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    step_size: Tensor
    # The highest of the loss, where it was, and its gradient there.
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    # Since the last checkpoint: how often the loss rose, the highest before, and whether the step size was halved there.
    rises: Tensor
    best_before: Tensor
    halved: Tensor
    # How far beyond the decision it was when last looked at, and the time before.
    margin: Tensor
    margin_before: Tensor

    @staticmethod
    def at(start: Tensor, x: Tensor, y: Tensor, target: Tensor, payer: Tensor, step_size: float) -> "_Place":
        lowest = torch.full((len(x),), -torch.inf, device=x.device)
        return _Place(
            index=torch.arange(len(x), device=x.device),
            payer=payer,
            x=x,
            y=y,
            target=target,
            z=start,
            previous=start,
            gradient=torch.zeros_like(x),
            value=-lowest,
            step_size=torch.full_like(lowest, step_size),
            best=start,
            best_gradient=torch.zeros_like(x),
            best_value=lowest,
            rises=torch.zeros_like(lowest),
            best_before=lowest,
            halved=torch.ones_like(lowest, dtype=torch.bool),
            margin=lowest,
            margin_before=lowest,
        )

    def take(self, kept: Tensor) -> "_Place":
        if bool(kept.all()):
            return self
        return _Place(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})

    def split(self, size: int) -> "list[_Place]":
        """Parts of so many samples, the last of what is left."""
        names = [field.name for field in fields(self)]
        parts = zip(*(getattr(self, name).split(size) for name in names), strict=True)
        return [_Place(**dict(zip(names, part, strict=True))) for part in parts]


class _Climb:
    """One climb of lanes side by side, each from its start and for its target."""

    def __init__(
        self, attack: Apgd, model: Model, threat: ThreatModel, rng: SampleRandom, place: _Place, rounded_steps: int = 0
    ) -> None:
        self.attack, self.model, self.threat, self.rng, self.place = attack, model, threat, rng, place
        self.rounded_steps = rounded_steps
        self.adaptive, self.checkpoints = attack.adapts(model), _checkpoints(attack.steps)
        self.window = 0  # steps since the last checkpoint

    def to_success(self, turn: Tensor, *, narrowing: bool) -> "_Found":
        """What came of each lane, for a deterministic model. `turn` (l,) is the place of its target among those of its sample.

        Where one lane of a sample succeeds, all of them end.
        """
        start, row = self.place.z, self.place.payer
        images, broken = start.clone(), torch.zeros(len(start), dtype=torch.bool, device=start.device)
        lost = broken.clone()
        highest = torch.full((len(start),), -torch.inf, device=start.device)
        closest = highest.clone()
        size = (int(row.max()) + 1, int(turn.max()) + 1)
        fallen = torch.zeros(size[0], dtype=torch.bool, device=start.device)
        allowed = size[1]
        for step in range(self.attack.steps + 1):
            logits, wins = self._look(step)
            place = self.place
            index = place.index
            near = probability_margin(logits.detach(), place.y).nan_to_num(nan=1.0)
            closest[index] = torch.maximum(closest[index], near)
            better = (wins & ~broken[index]) | ((wins == broken[index]) & (place.value > highest[index]))
            images[index[better]], highest[index[better]] = place.z[better], place.value[better]
            broken[index] |= wins
            # Where a gradient is not a number there is no way on, and the judge refuses the sample unless it has fallen.
            stuck = steepest(place.gradient, self.threat.norm).isnan().flatten(1).any(dim=1)
            lost[index] |= stuck & ~broken[index]
            fallen[place.payer[wins]] = True
            self.place = place.take(~((fallen[place.payer] & self.attack.early_exit) | stuck))
            if narrowing and self.attack.lanes_after(step) < allowed:
                allowed = self.attack.lanes_after(step)
                self._keep_closest(allowed, closest, turn, size)
            if step == self.attack.sixth:
                before = closest.clone()
            if narrowing and step == self.attack.third:
                self.place = self.place.take(self.attack.goes_on(before, closest)[self.place.index])
            if step == self.attack.steps or not len(self.place.z):
                break
            self._move(step)
        images[lost] = torch.nan
        return _Found(images, broken, lost, closest)

    def _arithmetic(self, step: int) -> Precision:
        if step < self.rounded_steps:
            return "bfloat16"
        return "float32" if self.model.stochastic or self.attack.precision in ("float32", "auto") else "folded"

    def _keep_closest(self, allowed: int, closest: Tensor, turn: Tensor, size: tuple[int, int]) -> None:
        """Go on with so many lanes of each sample."""
        index, row = self.place.index, self.place.payer
        standing = torch.full(size, -torch.inf, device=closest.device)
        standing[row, turn[index]] = closest[index]
        self.place = self.place.take(_ranks(standing)[row, turn[index]] < allowed)

    def to_the_end(self) -> tuple[Tensor, Tensor, Tensor]:
        """The start, the iterate with the highest of the estimator's mean losses, and the last, for a stochastic model."""
        start = self.place.z
        for step in range(self.attack.steps):
            self._look(step)
            self._move(step)
        return start, self.place.best, self.place.z

    def _look(self, step: int) -> tuple[Tensor, Tensor]:
        """Learn the loss and its gradient where the samples stand; the logits (b, k) there, and who has fallen (b,).

        Who is seen to have fallen before gradients are asked for gets a zero one: the search goes on without them.
        """
        place, likely = self.place, self._likely_fallen(step)
        if bool(likely.any()):
            fallen, learnt = self._look_first(likely, step)
        else:
            learnt = self._learn(place, step)
            fallen = self._misclassified(place, learnt[0], step)
        logits, value, gradient = learnt
        # An answer that is not a number is what the judge calls broken; its gradient leads nowhere.
        failed = not_finite(logits)
        value = value.masked_fill(failed, torch.inf)
        gradient = gradient.masked_fill(failed.view(-1, 1, 1, 1), 0)
        higher = value > place.best_value
        column = higher.view(-1, 1, 1, 1)
        self.place = replace(
            place,
            value=value,
            gradient=gradient,
            margin=margin_here(logits, place.y),
            margin_before=place.margin,
            rises=place.rises + (value > place.value),
            best=torch.where(column, place.z, place.best),
            best_gradient=torch.where(column, gradient, place.best_gradient),
            best_value=torch.where(higher, value, place.best_value),
        )
        return logits, fallen

    def _look_first(self, likely: Tensor, step: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Who has fallen (b,), and what `_learn` tells of all, with no gradient for those of the `likely` (b,) who have."""
        place, some = self.place, self.place.take(likely)
        with torch.no_grad(), self.model.computing_in(self._arithmetic(step)):
            seen = self.model(some.z, some.payer)
        fallen = likely.clone()
        fallen[likely] = self._misclassified(some, seen, step)
        seen = seen[fallen[likely]]
        values = self._objective(seen, place.y[fallen], place.target[fallen])[0]
        told = seen, values, torch.zeros((), device=seen.device)
        logits, value, gradient = (
            _merged(fallen, those, others) for those, others in zip(told, self._learn(place.take(~fallen), step), strict=True)
        )
        fallen[~likely] = self._misclassified(place.take(~likely), logits[~likely], step)
        return fallen, (logits, value, gradient)

    def _likely_fallen(self, step: int) -> Tensor:
        """Whom (b,) to look at before gradients are asked for."""
        place = self.place
        if not self.attack.looks_ahead or self.model.stochastic or not 0 < step < self.attack.steps:
            return torch.zeros_like(place.halved)
        rise = total(place.gradient * (place.z - place.previous))
        return to_look_at(step, margin_ahead(place.margin, place.margin_before, self.attack.loss, place.value, rise))

    def _misclassified(self, place: _Place, logits: Tensor, step: int) -> Tensor:
        return misclassified(self.model, place.z, logits, place.y, place.payer, self._arithmetic(step))

    def _learn(self, place: _Place, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The logits (b, k) where samples stand, the loss (b,) and its gradient (b, c, h, w)."""
        if not len(place.z):
            return place.z.new_zeros((0, self.model.classes)), place.value, place.z
        with self.model.computing_in(self._arithmetic(step)):
            if step == self.attack.steps:
                with torch.no_grad():
                    logits = self.model(place.z, place.payer)
                    return logits, self._objective(logits, place.y, place.target)[0], torch.zeros_like(place.z)
            if self.model.stochastic or self.attack.gradient.in_step:
                return self._estimate(place, self.rng.take(place.index).child(step))
            # A pass at a time: autograd keeps what each went through.
            room = self.model.batch_sizes(gradients=True)[0]
            parts = [self._estimate(part, self.rng) for part in place.split(room)]
            logits, value, gradient = (torch.cat(each) for each in zip(*parts, strict=True))
            return logits, value, gradient

    def _check(self, steps: int) -> None:
        """Halve the step size and go back to the best iterate where few of the last `steps` rose, or none rose above it."""
        place = self.place
        stuck = ~place.halved & (place.best_before >= place.best_value)
        halved = (place.rises <= _RHO * steps) | stuck
        column = halved.view(-1, 1, 1, 1)
        self.place = replace(
            place,
            z=torch.where(column, place.best, place.z),
            gradient=torch.where(column, place.best_gradient, place.gradient),
            value=torch.where(halved, place.best_value, place.value),
            step_size=torch.where(halved, place.step_size / 2, place.step_size),
            rises=torch.zeros_like(place.rises),
            best_before=place.best_value,
            halved=halved,
        )

    def _move(self, step: int) -> None:
        if self.adaptive and step in self.checkpoints:
            self._check(step - self.window)
            self.window = step
        place, threat = self.place, self.threat
        size = place.step_size
        if not self.adaptive:
            falling = (1 + math.cos(math.pi * step / max(self.attack.steps - 1, 1))) / 2
            size = torch.full_like(size, threat.radius * (0.05 + 1.95 * falling))
        ahead = project(place.z + size.view(-1, 1, 1, 1) * steepest(place.gradient, threat.norm), place.x, threat)
        if step:
            ahead = place.z + _MOMENTUM * (ahead - place.z) + (1 - _MOMENTUM) * (place.z - place.previous)
            ahead = project(ahead, place.x, threat)
        self.place = replace(place, z=ahead, previous=place.z)

    def _estimate(self, place: _Place, rng: SampleRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (b, k), losses (b,) and their gradients where samples stand."""

        def objective(logits: Tensor) -> Tensor:
            return self._objective(logits, place.y, place.target)

        found = self.attack.gradient(self.model, place.z, objective, rng, place.payer)
        return found.logits, found.values[0], found.gradients[0]

    def _objective(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        if self.attack.targets:
            return TARGETED[self.attack.loss](logits, y, target)[None]
        return LOSSES[self.attack.loss](logits, y)[None]


@dataclass(frozen=True, slots=True)
class _Found:
    """Of each lane: the image that it proposes, whether that is misclassified, whether the gradient was not a number before
    it was, and the largest probability margin of any iterate."""

    images: Tensor
    broken: Tensor
    lost: Tensor
    closest: Tensor

    @property
    def merit(self) -> Tensor:
        """By which one lane of a sample is chosen: one that succeeded, else one without a way on, else the closest."""
        return torch.where(self.broken, _BROKEN + 1 + self.closest, torch.where(self.lost, 2.0, self.closest))


def _merged(chosen: Tensor, those: Tensor, others: Tensor) -> Tensor:
    """Values of a batch, of whose samples some (b,) have `those`."""
    merged = others.new_empty((len(chosen), *others.shape[1:]))
    merged[chosen], merged[~chosen] = those.to(merged), others
    return merged


def _ranks(values: Tensor) -> Tensor:
    """The place (b, m) of each value in its row by size, from 0 for the largest; of equals the first is first."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def _checkpoints(steps: int) -> frozenset[int]:
    """After how many steps the step size is looked at: 22 % of them, then ever fewer more, 6 % at last (section 3.1)."""
    found, at, stretch = set(), 0, max(int(0.22 * steps), 1)
    while at + stretch <= steps:
        at += stretch
        found.add(at)
        stretch = max(stretch - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return frozenset(found)
