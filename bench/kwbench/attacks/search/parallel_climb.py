"""Gradient ascent of Auto-PGD: momentum steps from many starts and towards many target classes, in parallel.

A climb is one run of such an ascent, for one sample, start and target. A batch holds many climbs.
"""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from kwbench.attacks.search.lookahead import current_margin, expected_margin, most_lookaheads, should_look_ahead
from kwbench.attacks.search.losses import (
    LOSSES,
    TARGETED,
    LossName,
    no_answer,
    probability_margin,
    targeted_probability_margin,
)
from kwbench.attacks.search.narrowing import Narrowing, ranks
from kwbench.attacks.search.trials import Mask, misclassified, on_device, put_where, read
from kwbench.geometry import project, steepest, total
from kwbench.gradients import Gradient
from kwbench.model import Model, Precision
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# Croce and Hein 2020 (arXiv:2003.01690), algorithm 1: the weight of the new step, and the share of steps that raise the loss,
# at or below which the step size is halved.
_MOMENTUM, _RHO = 0.75, 0.75
# The lowest score of a climb that ended in a misclassified image.
SUCCESS = 3.0


@dataclass(frozen=True, slots=True)
class ClimbSettings:
    """Settings that all climbs share.

    `adaptive`: the step size is halved at checkpoints; otherwise it follows a cosine. `lookahead`: on deterministic models,
    iterates that are likely to be misclassified get a forward pass first, and a gradient only if they are not. The first
    `rounded_steps` steps compute in bfloat16, the others in `precision`.
    """

    steps: int
    loss: LossName
    targeted: bool
    gradient: Gradient
    adaptive: bool
    early_exit: bool
    lookahead: bool
    precision: Precision
    rounded_steps: int = 0


@dataclass(frozen=True, slots=True)
class ClimbState:
    """State of the climbs that still run; every field has one entry per climb.

    `index` is the number of the climb, `row` the row of its sample in the metered batch. `z` is the current iterate, `previous`
    the one before; `gradient` and `value` are the loss gradient and the loss at `z`. `best` is the iterate of highest loss so
    far. Three fields refer to the last checkpoint: `rises` counts the steps since then that raised the loss,
    `best_value_before` is the highest loss until then, and `halved` tells whether the step size was halved there. `margin` and
    `margin_before` are the margins of the last two iterates.
    """

    index: Tensor
    row: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    z: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    step_size: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    rises: Tensor
    best_value_before: Tensor
    halved: Tensor
    margin: Tensor
    margin_before: Tensor

    @staticmethod
    def at(start: Tensor, x: Tensor, y: Tensor, target: Tensor, row: Tensor, step_size: float) -> "ClimbState":
        """Return the state at the starts (l, c, h, w), before the first pass."""
        lowest = torch.full((len(x),), -torch.inf, device=x.device)
        return ClimbState(
            index=torch.arange(len(x), device=x.device),
            row=row,
            x=x,
            y=y,
            target=target,
            z=start,
            previous=start,
            gradient=torch.zeros_like(x),
            # The loss at the start does not count as a rise.
            value=-lowest,
            step_size=torch.full_like(lowest, step_size),
            best=start,
            best_gradient=torch.zeros_like(x),
            best_value=lowest,
            rises=torch.zeros_like(lowest),
            best_value_before=lowest,
            halved=torch.ones_like(lowest, dtype=torch.bool),
            margin=lowest,
            margin_before=lowest,
        )

    def take(self, kept: Mask) -> "ClimbState":
        """Return the state of the climbs in the mask `kept` (l,), on the CPU."""
        if kept.all():
            return self
        at = on_device(np.flatnonzero(kept), self.z)
        return ClimbState(**{field.name: getattr(self, field.name)[at] for field in fields(self)})

    def split(self, size: int) -> "list[ClimbState]":
        """Return parts of `size` climbs; the last part holds the remainder."""
        names = [field.name for field in fields(self)]
        parts = zip(*(getattr(self, name).split(size) for name in names), strict=True)
        return [ClimbState(**dict(zip(names, part, strict=True))) for part in parts]


@dataclass(frozen=True, slots=True)
class ClimbResult:
    """Results of climbs, one entry per climb.

    `images`: the proposed images. `broken`: whether they are misclassified. `closest`: the largest probability margin of any
    iterate. `approach`: the same for the climb's own target alone.
    """

    images: Tensor
    broken: Tensor
    closest: Tensor
    approach: Tensor

    @property
    def score(self) -> Tensor:
        """Scores (l,) that rank the climbs of a sample: successes first, then by the largest margin."""
        return torch.where(self.broken, SUCCESS + 1 + self.closest, self.closest)


class ParallelClimb:
    """Climbs that run in parallel, each from its own start and towards its own target."""

    def __init__(
        self, settings: ClimbSettings, model: Model, threat: ThreatModel, rng: SampleRandom, state: ClimbState
    ) -> None:
        self._settings, self._model, self._threat, self._rng, self._state = settings, model, threat, rng, state
        self._checkpoints = checkpoints(settings.steps)
        self._last_checkpoint = 0
        # Which iterates (l,) get a lookahead; on the CPU, None for none.
        self._likely: Mask | None = None

    def until_success(self, target_index: Tensor, narrowing: Narrowing | None) -> ClimbResult:
        """Climb on a deterministic model, and return the results of all climbs (l,).

        With `early_exit`, the first success for a sample ends all its climbs; otherwise they go on.
        `target_index` (l,) is the position of a climb's target among the targets of its sample. `narrowing` says when a sample
        gives up some of its targets; None to keep all.
        """
        settings, start, row = self._settings, self._state.z, self._state.row
        images, broken = start.clone(), torch.zeros(len(start), dtype=torch.bool, device=start.device)
        highest = torch.full((len(start),), -torch.inf, device=start.device)
        closest, approach = highest.clone(), highest.clone()
        size = (int(row.max()) + 1, int(target_index.max()) + 1)
        successes = torch.zeros(size[0], dtype=torch.long, device=start.device)
        allowed = size[1]
        for step in range(settings.steps + 1):
            logits, successful, may_end = self._evaluate(step)
            state = self._state
            index = state.index
            margins = probability_margin(logits.detach(), state.y).nan_to_num(nan=1.0)
            closest[index] = torch.maximum(closest[index], margins)
            approach[index] = torch.maximum(approach[index], self._target_margins(logits.detach(), margins))
            better = (successful & ~broken[index]) | ((successful == broken[index]) & (state.value > highest[index]))
            put_where(better, images, index, state.z)
            put_where(better, highest, index, state.value)
            broken[index] = broken[index] | successful
            if step == settings.steps:
                break
            kept = torch.ones_like(successful)
            if settings.early_exit:
                successes.index_add_(0, state.row, successful.long())
                kept = successes[state.row] == 0
            if narrowing is not None and narrowing.climbs_after(step) < allowed:
                allowed, may_end = narrowing.climbs_after(step), True
                kept &= self._is_among_nearest(allowed, approach, target_index, size)
            if narrowing is not None and step == narrowing.sixth:
                closest_at_sixth = closest.clone()
            if narrowing is not None and step == narrowing.third:
                kept, may_end = kept & narrowing.goes_on(closest_at_sixth, closest)[index], True
            self._move(step)
            if not self._sort_out(step + 1, kept if may_end else None):
                break
        return ClimbResult(images, broken, closest, approach)

    def to_the_end(self) -> tuple[Tensor, Tensor, Tensor]:
        """Take all steps on a stochastic model; return the start, the iterate of highest mean loss, and the last iterate."""
        start = self._state.z
        for step in range(self._settings.steps):
            self._evaluate(step)
            self._move(step)
        return start, self._state.best, self._state.z

    def _precision(self, step: int) -> Precision:
        return "bfloat16" if step < self._settings.rounded_steps else self._settings.precision

    def _target_margins(self, logits: Tensor, margins: Tensor) -> Tensor:
        """Return the probability margins (l,) of the climbs' own targets; untargeted climbs have `margins`.

        Climbs to several targets may raise the same third class alike, which says nothing about their targets.
        """
        if not self._settings.targeted:
            return margins
        return targeted_probability_margin(logits, self._state.y, self._state.target).nan_to_num(nan=1.0)

    def _sort_out(self, step: int, kept: Tensor | None) -> bool:
        """Give up the climbs that are not `kept` (l,), choose those to look ahead at, and return whether any goes on."""
        likely = self._likely_misclassified(step)
        masks = [mask for mask in (kept, likely) if mask is not None]
        answers = list(read(*masks)) if masks else []
        self._likely = answers.pop() if likely is not None else None
        if kept is not None:
            self._state = self._state.take(answers[0])
            self._likely = None if self._likely is None else self._likely[answers[0]]
        return len(self._state.z) > 0

    def _is_among_nearest(self, allowed: int, approach: Tensor, target_index: Tensor, size: tuple[int, int]) -> Tensor:
        """Return which climbs (l,) are among the `allowed` ones of their sample that have come nearest to their targets."""
        index, row = self._state.index, self._state.row
        margins = torch.full(size, -torch.inf, device=approach.device)
        margins[row, target_index[index]] = approach[index]
        return ranks(margins)[row, target_index[index]] < allowed

    def _evaluate(self, step: int) -> tuple[Tensor, Tensor, bool]:
        """Store the loss and its gradient at the iterates; return logits (l, k), which are misclassified (l,), and if any may.

        An iterate that a lookahead shows to be misclassified gets a zero gradient, because its climb needs no further step.
        """
        state, likely, may_be = self._state, self._likely, True
        if likely is not None and likely.any():
            successful, (logits, value, gradient) = self._evaluate_after_lookahead(likely, step)
        else:
            logits, value, gradient = self._loss_and_gradient(state, step)
            successful, may_be = self._misclassified(state, logits, step)
        # Non-finite logits count as misclassified. Their gradients are useless and may be NaN.
        failed = no_answer(logits)
        value = value.masked_fill(failed, torch.inf)
        gradient = gradient.masked_fill(failed.view(-1, 1, 1, 1), 0)
        higher = value > state.best_value
        column = higher.view(-1, 1, 1, 1)
        self._state = replace(
            state,
            value=value,
            gradient=gradient,
            margin=current_margin(logits, state.y),
            margin_before=state.margin,
            rises=state.rises + (value > state.value),
            best=torch.where(column, state.z, state.best),
            best_gradient=torch.where(column, gradient, state.best_gradient),
            best_value=torch.where(higher, value, state.best_value),
        )
        return logits, successful, may_be

    def _evaluate_after_lookahead(self, likely: Mask, step: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Look ahead at the iterates in the mask `likely` (l,), and compute gradients only at the others and where it failed.

        Return which iterates are misclassified (l,), and the logits, losses and gradients as `_loss_and_gradient` does. The
        gradients are zero where the lookahead found a misclassified iterate. `likely` lies on the CPU.
        """
        state, candidates = self._state, self._state.take(likely)
        with torch.no_grad(), self._model.computing_in(self._precision(step)):
            logits_ahead = self._model(candidates.z, candidates.row)
        broken, may_be = self._misclassified(candidates, logits_ahead, step)
        found = read(broken)[0] if may_be else np.zeros(len(broken), dtype=np.bool_)
        ended = likely.copy()
        ended[likely] = found
        at, others_at, asked = (on_device(np.flatnonzero(mask), state.z) for mask in (ended, ~ended, ~likely))
        logits_ahead = logits_ahead[on_device(np.flatnonzero(found), state.z)]
        values_ahead = self._objective(logits_ahead, state.y[at], state.target[at])[0]
        ahead = logits_ahead, values_ahead, torch.zeros((), device=logits_ahead.device)
        others = self._loss_and_gradient(state.take(~ended), step)
        logits, value, gradient = (_merged(at, one, others_at, other) for one, other in zip(ahead, others, strict=True))
        successful = torch.zeros_like(state.halved)
        successful[at] = True
        successful[asked] = self._misclassified(state.take(~likely), logits[asked], step)[0]
        return successful, (logits, value, gradient)

    def _likely_misclassified(self, step: int) -> Tensor | None:
        """Return which iterates (l,) are so likely to be misclassified that a lookahead saves time; None late in the search."""
        state = self._state
        ever = self._settings.lookahead and not self._model.stochastic
        if not ever or not 0 < step <= most_lookaheads(self._settings.steps - 1):
            return None
        rise = total(state.gradient * (state.z - state.previous))
        expected = expected_margin(state.margin, state.margin_before, self._settings.loss, state.value, rise)
        return should_look_ahead(expected)

    def _misclassified(self, state: ClimbState, logits: Tensor, step: int) -> tuple[Tensor, bool]:
        return misclassified(self._model, state.z, logits, state.y, state.row, self._precision(step))

    def _loss_and_gradient(self, state: ClimbState, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (l, k), losses (l,) and gradients (l, c, h, w) at the iterates; zero gradients after the last step."""
        if not len(state.z):
            return state.z.new_zeros((0, self._model.classes)), state.value, state.z
        with self._model.computing_in(self._precision(step)):
            if step == self._settings.steps:
                with torch.no_grad():
                    logits = self._model(state.z, state.row)
                    return logits, self._objective(logits, state.y, state.target)[0], torch.zeros_like(state.z)
            if self._model.stochastic or self._settings.gradient.in_step:
                return self._estimate(state, self._rng.take(state.index).child(step))
            # One batch at a time, because autograd keeps the activations of every row until the backward pass.
            batch_size = self._model.batch_sizes(gradients=True)[0]
            parts = [self._estimate(part, self._rng) for part in state.split(batch_size)]
            logits, value, gradient = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            return logits, value, gradient

    def _estimate(self, state: ClimbState, rng: SampleRandom) -> tuple[Tensor, Tensor, Tensor]:
        def objective(logits: Tensor) -> Tensor:
            return self._objective(logits, state.y, state.target)

        estimate = self._settings.gradient(self._model, state.z, objective, rng, state.row)
        return estimate.logits, estimate.values[0], estimate.gradients[0]

    def _objective(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        if self._settings.targeted:
            return TARGETED[self._settings.loss](logits, y, target)[None]
        return LOSSES[self._settings.loss](logits, y)[None]

    def _adapt_step_size(self, steps: int) -> None:
        """At a checkpoint, halve the step size of climbs that no longer improve, and return them to their best iterate.

        These are the climbs in which too few of the last `steps` steps raised the loss, or in which none raised it above the
        previous best although the step size was not halved at the last checkpoint.
        """
        state = self._state
        stuck = ~state.halved & (state.best_value_before >= state.best_value)
        halved = (state.rises <= _RHO * steps) | stuck
        column = halved.view(-1, 1, 1, 1)
        self._state = replace(
            state,
            z=torch.where(column, state.best, state.z),
            gradient=torch.where(column, state.best_gradient, state.gradient),
            value=torch.where(halved, state.best_value, state.value),
            step_size=torch.where(halved, state.step_size / 2, state.step_size),
            rises=torch.zeros_like(state.rises),
            best_value_before=state.best_value,
            halved=halved,
        )

    def _move(self, step: int) -> None:
        if self._settings.adaptive and step in self._checkpoints:
            self._adapt_step_size(step - self._last_checkpoint)
            self._last_checkpoint = step
        state, threat = self._state, self._threat
        size = state.step_size
        if not self._settings.adaptive:
            cosine = (1 + math.cos(math.pi * step / max(self._settings.steps - 1, 1))) / 2
            size = torch.full_like(size, threat.radius * (0.05 + 1.95 * cosine))
        z = project(state.z + size.view(-1, 1, 1, 1) * steepest(state.gradient, threat.norm), state.x, threat)
        if step:
            z = state.z + _MOMENTUM * (z - state.z) + (1 - _MOMENTUM) * (state.z - state.previous)
            z = project(z, state.x, threat)
        self._state = replace(state, z=z, previous=state.z)


def checkpoints(steps: int) -> frozenset[int]:
    """Return the checkpoints: the numbers of steps after which the step size is adapted.

    The first interval is 22 % of the steps. Each following one is shorter by 3 % of the steps, but at least 6 % (section 3.1 of
    arXiv:2003.01690).
    """
    points, point, interval = set(), 0, max(int(0.22 * steps), 1)
    while point + interval <= steps:
        point += interval
        points.add(point)
        interval = max(interval - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return frozenset(points)


def _merged(at: Tensor, values: Tensor, others_at: Tensor, others: Tensor) -> Tensor:
    """Return the values of a batch: `values` at the positions `at`, `others` at `others_at`."""
    merged = others.new_empty((len(at) + len(others_at), *others.shape[1:]))
    merged[at], merged[others_at] = values.to(merged), others
    return merged
