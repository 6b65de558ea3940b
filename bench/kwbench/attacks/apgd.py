"""Auto-PGD (Croce and Hein 2020, arXiv:2003.01690)."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from kwbench.attacks.attack import ModelFacts, PrecisionOrAuto, RestartedAttack
from kwbench.attacks.search.lookahead import most_lookaheads
from kwbench.attacks.search.losses import LossName, fooled, margin
from kwbench.attacks.search.narrowing import Narrowing
from kwbench.attacks.search.parallel_climb import SUCCESS, ClimbSettings, ClimbState, ParallelClimb
from kwbench.attacks.search.targets import candidates, nearest_classes
from kwbench.geometry import random_start
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import ThreatModel

# How close `focus: auto` wants a target after a third of the steps: all of 42 samples that fell to targets on two networks were
# that close then, and most of those that held were not.
_FOCUS = 0.1


@dataclass(frozen=True)
class Apgd(RestartedAttack):
    """Steepest ascent with momentum; the step size starts at 2 * eps and is halved at checkpoints if the loss rose too seldom.

    The defaults are AutoAttack's: 100 steps, one restart. With `targets` the targeted loss is raised for each of the k most
    promising classes, those nearest by a linear estimate (MALT, arXiv:2407.02240).

    Deterministic models: the first misclassified iterate of a sample is proposed, and with `early_exit` ends its search. If no
    iterate is misclassified, the one of highest loss is proposed. The targets of a sample climb in parallel, and after the
    first climb so do all further restarts. Some climbs are given up:

    - `finalists`: only so many targets of a sample go on after a third of the steps, three times as many after a sixth: those
      that have come nearest to their own class. Only they are restarted.
    - `focus`, in (0, 1]: after a third of the steps, a climb goes on only if another class came within so much of the true
      class's probability, or would come at the climb's pace. A target that ends further off is not restarted. `auto` is 0.1 if
      nothing in the model hides its gradient. Otherwise all climbs go on, because a distant target may be one step away.

    `precision`: `folded` computes gradients with batch norms folded into convolutions, `tf32` also lets a GPU round factors to
    TF32. `bfloat16` takes the first five sixths of the first climb in bfloat16, and the rest folded. Float32 confirms every
    success. `auto` is `float32` if something hides a gradient. Else it is `bfloat16` in linf, where steps use signs only, on
    exact gradients; or `tf32`; each if it is faster and preserves predictions; or `folded` if there is a batch norm to fold.

    Stochastic models: one target after the other. The step size follows a cosine from 2 * eps to eps / 20, because noise would
    halve it at every checkpoint (`schedule: auto`; also for the estimators `smooth` and `es`, which add noise of their own).
    The start, the last iterate and that of the highest mean loss, of every restart and target, are compared by how often each
    fails in `selection_draws` fresh draws.
    """

    revision: ClassVar[int] = 2

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
    precision: PrecisionOrAuto = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.selection_draws < 1:
            raise ValueError("steps, restarts and selection_draws must be at least 1")
        if self.targets < 0:
            raise ValueError("targets must not be negative; 0 is the untargeted attack")
        if self.finalists is not None and not (self.finalists >= 1 and self.targets):
            raise ValueError("finalists is a number of targets: it must be at least 1, and needs targets")
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without a random start all take the same path")
        if not (self.narrowing.reach == math.inf or 0 < self.narrowing.reach <= 1):
            raise ValueError(f"focus: {self.focus} is a difference of probabilities and must lie in (0, 1]")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,)."""
        targets = nearest_classes(model, x, y, threat.norm, self.gradient, self.targets, rng) if self.targets else y[:, None]
        if model.stochastic:
            return self._most_failing(model, x, y, targets, threat, rng)
        return self._first_success(model, x, y, targets, threat, rng) if len(x) else x.clone()

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        if stochastic:
            climbs = self.restarts * max(self.targets, 1)
            search = climbs * (self.steps * self.gradient.passes() + 3 * self.selection_draws)
        else:
            climbs_at = [max(self.targets, 1), *(self.narrowing.climbs_after(step) for step in range(self.steps))]
            climbing = sum(climbs_at[:-1]) + (self.restarts - 1) * self.steps * climbs_at[-1]
            ending = self.restarts * climbs_at[-1]
            confirming = climbing + ending if self.search_precision != "float32" else 0
            lookaheads = self.restarts * most_lookaheads(self.steps - 1) if self._looks_ahead else 0
            search = climbing * self.gradient.passes() + ending + confirming + lookaheads
        return search + (1 + self.gradient.passes(candidates(self.targets)) if self.targets else 0)

    def resolved(self, facts: ModelFacts) -> Self:
        """See Attack."""
        attack = super().resolved(facts)
        if attack.focus == "auto":
            attack = replace(attack, focus=None if facts.hides_gradients else _FOCUS)
        return attack

    def adapts(self, model: Model) -> bool:
        """Whether the step size follows the loss. Noise in the loss or its gradient would halve it at every checkpoint."""
        noisy = model.stochastic or self.gradient.noisy
        return self.schedule == "adaptive" or (self.schedule == "auto" and not noisy)

    @property
    def narrowing(self) -> Narrowing:
        """When targets are given up."""
        reach = math.inf if self.focus is None or self.focus == "auto" else self.focus
        return Narrowing(self.steps, max(self.targets, 1), self.finalists, reach)

    @property
    def _looks_ahead(self) -> bool:
        # Of many targets few are ever reached, so that lookaheads do not pay.
        return self.early_exit and not self.targets

    def _settings(self, model: Model, *, rounded: bool) -> ClimbSettings:
        # The last sixth of the steps is too small for bfloat16.
        precision = "float32" if model.stochastic else self.search_precision
        rounded_steps = -(-5 * self.steps // 6) if rounded and precision == "bfloat16" else 0
        return ClimbSettings(
            steps=self.steps,
            loss=self.loss,
            targeted=bool(self.targets),
            gradient=self.gradient,
            adaptive=self.adapts(model),
            early_exit=self.early_exit,
            lookahead=self._looks_ahead,
            precision="folded" if precision == "bfloat16" else precision,
            rounded_steps=rounded_steps,
        )

    def _start(self, x: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        return random_start(x, threat, rng) if self.random_start else x.clone()

    def _first_success(
        self, model: Model, x: Tensor, y: Tensor, targets: Tensor, threat: ThreatModel, rng: SampleRandom
    ) -> Tensor:
        """Return the proposals (b, c, h, w) for a deterministic model; `targets` (b, m)."""
        best, best_score = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)

        def climb(rows: Tensor, wanted: Tensor, numbers: SampleRandom, *, first: bool) -> tuple[Tensor, Tensor]:
            """Climb for the samples `rows` (r,) and improve their proposals.

            `wanted` (s, r, m): whether to climb from each of s starts to each of m targets. Returns the largest probability
            margins (r, m) that the climbs to each target reached, of any class and of the target.
            """
            at = (start, position, target_index) = wanted.nonzero(as_tuple=True)
            row = rows[position]
            stream = numbers.for_parts(row, start * targets.shape[1] + target_index)
            z = self._start(x[row], threat, stream)
            state = ClimbState.at(z, x[row], y[row], targets[row, target_index], row, 2 * threat.radius)
            climbs = ParallelClimb(self._settings(model, rounded=first), model, threat, stream, state)
            result = climbs.until_success(target_index, self.narrowing if first else None)
            scores, closest, approach = (torch.full(wanted.shape, -torch.inf, device=x.device) for _ in range(3))
            scores[at], closest[at], approach[at] = result.score, result.closest, result.approach
            climb_number = torch.zeros(wanted.shape, dtype=torch.long, device=x.device)
            climb_number[at] = torch.arange(len(row), device=x.device)
            highest, which = scores.transpose(0, 1).flatten(1).max(dim=1)
            better = highest > best_score[rows]
            best_score[rows[better]] = highest[better]
            winner = climb_number.transpose(0, 1).flatten(1).gather(1, which[:, None]).squeeze(1)
            best[rows[better]] = result.images[winner[better]]
            return closest.amax(dim=0), approach.amax(dim=0)

        every = torch.ones((1, *targets.shape), dtype=torch.bool, device=x.device)
        reached = climb(torch.arange(len(x), device=x.device), every, rng.child("restart 0"), first=True)
        again = self.narrowing.restarts(*reached) & (best_score < SUCCESS)[:, None]
        rows, starts = again.any(dim=1).nonzero().squeeze(1), self.restarts - 1
        # All further restarts of a sample climb in parallel, so that few samples still fill a pass; if there are many samples,
        # no more climbs at once than in the first round.
        parts = min(len(rows), -(-starts * int(again.sum()) // targets.numel()))
        for part in torch.tensor_split(rows, parts) if parts else ():
            climb(part, again[part].expand(starts, -1, -1), rng.child("further restarts"), first=False)
        return best

    def _most_failing(
        self, model: Model, x: Tensor, y: Tensor, targets: Tensor, threat: ThreatModel, rng: SampleRandom
    ) -> Tensor:
        """Return the proposals (b, c, h, w) for a stochastic model; `targets` (b, m)."""
        best, best_score = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        settings = self._settings(model, rounded=False)
        for restart in range(self.restarts):
            for target_index in range(targets.shape[1]):
                stream = rng.take(rows).child(f"restart {restart} target {target_index}")
                start = self._start(x[rows], threat, stream)
                state = ClimbState.at(start, x[rows], y[rows], targets[rows, target_index], rows, 2 * threat.radius)
                for z in ParallelClimb(settings, model, threat, stream, state).to_the_end():
                    score = self._failure_rate(model, z, y[rows], rows)
                    better = score > best_score[rows]
                    best[rows[better]], best_score[rows[better]] = z[better], score[better]
                rows = rows[best_score[rows] < 1]
                if not len(rows):
                    return best
        return best

    def _failure_rate(self, model: Model, z: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """Return the share of draws (b,) in which z is misclassified, plus up to half a draw that grows with the mean margin
        and decides between equals; at least 1 if z always fails."""
        failures, margins = torch.zeros(len(z), device=z.device), torch.zeros(len(z), device=z.device)
        with torch.no_grad():
            for _ in range(self.selection_draws):
                logits = model(z, rows)
                failures += fooled(logits, y)
                margins += margin(logits, y).nan_to_num(nan=1e30, posinf=1e30, neginf=-1e30)
        mean = margins / self.selection_draws
        # The last term lies between 0 and half a draw.
        return (failures + (1 + mean / (1 + mean.abs())) / 4) / self.selection_draws
