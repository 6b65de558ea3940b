"""Carlini and Wagner's attacks (2017, arXiv:1608.04644)."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kwbench.attacks.attack import Attack, JudgingRule
from kwbench.attacks.search.losses import margin, no_answer
from kwbench.attacks.search.trials import on_device, put_where, read
from kwbench.geometry import finite_slopes, norms, total
from kwbench.gradients import EXACT, Gradient
from kwbench.model import Model
from kwbench.randomness import SampleRandom
from kwbench.threat import Norm, ThreatModel

# One step of an 8-bit image; smaller perturbations do not matter.
_LEAST_TAU = 1 / 256


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """Minimize `const` * max(0, confidence - margin) + penalty with Adam.

    l2 (section VI.A): the penalty is the squared distance, pixels are (tanh(w) + 1) / 2, and `const` is searched in
    `binary_search_steps` rounds. linf (section VI.C): the penalty is the part of each pixel's change beyond tau. A success
    lowers tau to `tau_factor` times its distance, a failure multiplies `const` by `const_factor`, and beyond `largest_const`
    the search ends. Pixels are clipped to their range after each step (section V.B, projected descent), because tanh hardly
    moves black and white ones. Every sample has its own const, tau, round and Adam state.

    `norm`: that of the search; None for the threat model's. Papers that used Foolbox 2 searched in l2 and judged in linf.
    `judged`: by the distance of the proposal (the paper, Foolbox 2), or clipped into the ball and predicted again (Foolbox 3).
    A round takes at most `steps` steps and ends early when a tenth of them brought no lower loss.

    Foolbox 2's CarliniWagnerL2Attack is `steps: 1000, step_size: 0.005`; its other defaults are ours. Ours, in l2 0.02 for
    `step_size` (of w), found the same median distance to 0.2 % in a quarter of the passes. The authors' li_attack.py is
    `steps: 1000, tau_factor: 0.9, const_factor: 2`; ours, in linf 0.005 for `step_size` (of pixels), came 3 % nearer in an
    eighth of the passes (a small CNN on digits).
    On a stochastic model no round ends early.
    """

    norms = frozenset({"linf", "l2"})
    needs = "gradients"
    minimum_norm = True

    binary_search_steps: int = 5
    steps: int = 200
    step_size: float | None = None
    confidence: float = 0.0
    initial_const: float = 1e-2
    abort_early: bool = True
    norm: Literal["l2", "linf"] | None = None
    tau_factor: float = 0.97
    const_factor: float = 4.0
    largest_const: float = 20.0
    gradient: Gradient = EXACT
    judged: JudgingRule = "distance"

    def __post_init__(self) -> None:
        if self.binary_search_steps < 1 or self.steps < 1:
            raise ValueError("binary_search_steps and steps must be at least 1")
        if (self.step_size is not None and self.step_size <= 0) or self.initial_const <= 0:
            raise ValueError("step_size and initial_const must be positive")
        if self.confidence < 0:
            raise ValueError("confidence must not be negative")
        if not 0 < self.tau_factor < 1 or self.const_factor <= 1:
            raise ValueError("tau_factor must lie between 0 and 1, const_factor above 1")

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, rng: SampleRandom) -> Tensor:
        """Propose images for x (b, c, h, w) with labels y (b,); x itself if no adversarial example was found."""
        norm: Norm = self.norm or threat.norm
        search = _TauSearch(self, x) if norm == "linf" else _BinarySearch(self, x)
        start = search.enter(x)
        anchor, _ = search.pixels(start)
        step_size = self.step_size if self.step_size is not None else {"l2": 0.02, "linf": 0.005}[norm]
        w, adam = start.clone(), _Adam(start, step_size)
        best, nearest = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
        age = torch.zeros(len(x), dtype=torch.long, device=x.device)
        lowest, lowest_before = torch.full_like(nearest, torch.inf), torch.full_like(nearest, torch.inf)
        check = math.ceil(self.steps / 10)
        # The samples that are still searched for, on the CPU and on the device.
        samples, active, iteration = np.arange(len(x)), torch.arange(len(x), device=x.device), 0
        while len(samples):
            labels, const = y[active], search.const[active]
            z, per_w = search.pixels(w[active])

            def shortfall(logits: Tensor, labels: Tensor = labels) -> Tensor:
                return (self.confidence - margin(logits, labels)).clamp_min(0)[None]

            estimate = self.gradient(model, z, shortfall, rng.take(samples.tolist()).child(iteration), active)
            iteration += 1
            penalty, slope = search.penalty(z - anchor[active], active)
            loss = const * estimate.values[0] + penalty
            # A large const may overflow.
            gradient = finite_slopes(const.view(-1, 1, 1, 1) * estimate.gradients[0] + slope)
            w[active] = search.allowed(w[active] - adam.step(active, gradient * per_w))

            raised = estimate.logits.scatter_add(1, labels[:, None], torch.full_like(penalty, self.confidence)[:, None])
            wins = (raised.argmax(dim=1) != labels) | no_answer(estimate.logits)
            far = norms(z - x[active], norm)
            closer = wins & (far < nearest[active])
            put_where(closer, best, active, z)
            put_where(closer, nearest, active, far)

            age[active] += 1
            lowest[active] = torch.minimum(lowest[active], loss)
            over = search.won(active, wins, far) | (age[active] >= self.steps)
            if self.abort_early and not model.stochastic:
                due = age[active] % check == 0
                over |= due & ~(lowest[active] <= 0.9999 * lowest_before[active])
                lowest_before[active] = torch.where(due, lowest[active], lowest_before[active])
            # A GPU is waited for only here.
            is_over, is_last = read(over, search.is_last(active, nearest))
            if not is_over.any():
                continue
            ended = active[on_device(np.flatnonzero(is_over), x)]
            search.next_round(ended, nearest)
            # In l2 each round starts at the image, in linf at the last success.
            w[ended] = search.enter(best[ended]) if norm == "linf" else start[ended]
            adam.reset(ended)
            age[ended], lowest[ended], lowest_before[ended] = 0, torch.inf, torch.inf
            goes_on = ~(is_over & is_last)
            samples, active = samples[goes_on], active[on_device(np.flatnonzero(goes_on), x)]
        return best

    def passes(self, stochastic: bool) -> int:
        """See Attack."""
        failures = math.ceil(math.log(max(self.largest_const / self.initial_const, 1), self.const_factor)) + 1
        successes = math.ceil(math.log(_LEAST_TAU, self.tau_factor)) + 1
        rounds = {"l2": self.binary_search_steps, "linf": failures + successes}
        most = rounds[self.norm] if self.norm is not None else max(rounds.values())
        return most * self.steps * self.gradient.passes()


class _BinarySearch:
    """The search for const in l2: multiply by ten until a round succeeds, then bisect between failure and success."""

    def __init__(self, attack: CarliniWagner, x: Tensor) -> None:
        self.attack = attack
        self.const = torch.full((len(x),), attack.initial_const, device=x.device)
        self.low, self.high = torch.zeros_like(self.const), torch.full_like(self.const, torch.inf)
        self.round = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def penalty(self, delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return total(delta.square()), 2 * delta

    def won(self, rows: Tensor, wins: Tensor, far: Tensor) -> Tensor:
        self.succeeded[rows] |= wins
        return torch.zeros_like(wins)  # a success does not end a round: a nearer one may follow

    def is_last(self, rows: Tensor, nearest: Tensor) -> Tensor:
        """Return for which rows (r,) no round would follow this one."""
        return self.round[rows] + 1 >= self.attack.binary_search_steps

    def next_round(self, rows: Tensor, nearest: Tensor) -> None:
        const, succeeded = self.const[rows], self.succeeded[rows]
        self.high[rows] = torch.where(succeeded, const, self.high[rows])
        self.low[rows] = torch.where(succeeded, self.low[rows], const)
        high, low = self.high[rows], self.low[rows]
        self.const[rows] = torch.where(high.isinf(), const * 10, (low + high) / 2)
        self.succeeded[rows] = False
        self.round[rows] += 1
        steps = self.attack.binary_search_steps
        if steps >= 10:
            # The authors' code gives the last of many rounds to the smallest const known to work.
            last = self.round[rows] == steps - 1
            self.const[rows] = torch.where(last, high.clamp_max(1e10), self.const[rows])

    @staticmethod
    def enter(x: Tensor) -> Tensor:
        return torch.atanh((2 * x - 1) * 0.999999)  # black and white stay finite

    @staticmethod
    def pixels(w: Tensor) -> tuple[Tensor, Tensor]:
        tanh = torch.tanh(w)
        return (tanh + 1) / 2, (1 - tanh.square()) / 2

    @staticmethod
    def allowed(w: Tensor) -> Tensor:
        return w


class _TauSearch:
    """The search for tau and const in linf."""

    def __init__(self, attack: CarliniWagner, x: Tensor) -> None:
        self.attack = attack
        self.const = torch.full((len(x),), attack.initial_const, device=x.device)
        self.tau = torch.ones_like(self.const)
        self.succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def penalty(self, delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        excess = delta.abs() - self.tau[rows].view(-1, 1, 1, 1)
        return total(excess.clamp_min(0)), delta.sign() * (excess > 0)

    def won(self, rows: Tensor, wins: Tensor, far: Tensor) -> Tensor:
        won = wins & (far <= self.tau[rows])
        self.succeeded[rows] = won
        return won

    def is_last(self, rows: Tensor, nearest: Tensor) -> Tensor:
        """Return for which rows (r,) no round would follow this one."""
        const, tau = self._next(rows, nearest)
        return (const > self.attack.largest_const) | (tau < _LEAST_TAU)

    def next_round(self, rows: Tensor, nearest: Tensor) -> None:
        self.const[rows], self.tau[rows] = self._next(rows, nearest)

    def _next(self, rows: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
        """Return const and tau of the next round."""
        succeeded, const, tau = self.succeeded[rows], self.const[rows], self.tau[rows]
        lower = torch.minimum(tau, nearest[rows]) * self.attack.tau_factor
        return torch.where(succeeded, const, const * self.attack.const_factor), torch.where(succeeded, lower, tau)

    @staticmethod
    def enter(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def pixels(w: Tensor) -> tuple[Tensor, Tensor]:
        return w, torch.ones_like(w)

    @staticmethod
    def allowed(w: Tensor) -> Tensor:
        return w.clamp(0, 1)


class _Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with moments and a step counter for each sample."""

    def __init__(self, like: Tensor, step_size: float) -> None:
        self.step_size = step_size
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.steps_taken = torch.zeros(len(like), device=like.device)

    def step(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Return the step (b, c, h, w) to subtract from the parameters of these rows."""
        self.steps_taken[rows] += 1
        steps_taken = self.steps_taken[rows].view(-1, 1, 1, 1)
        self.mean[rows] = 0.9 * self.mean[rows] + 0.1 * gradient
        self.square[rows] = 0.999 * self.square[rows] + 0.001 * gradient.square()
        mean, square = self.mean[rows] / (1 - 0.9**steps_taken), self.square[rows] / (1 - 0.999**steps_taken)
        return self.step_size * mean / (square.sqrt() + 1e-8)

    def reset(self, rows: Tensor) -> None:
        """Reset the moments and counters of these rows."""
        self.mean[rows], self.square[rows], self.steps_taken[rows] = 0.0, 0.0, 0.0
