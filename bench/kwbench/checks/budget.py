"""Twice the budget: attacks that spend as much again, with other random numbers, must break nothing new."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from kwbench.attacks.attack import Attack
from kwbench.data import Batch
from kwbench.finding import Criterion, Finding
from kwbench.judge import FRESH_DRAWS, judge, judge_clean
from kwbench.model import Model
from kwbench.outcome import Status
from kwbench.randomness import derived_seed
from kwbench.threat import ThreatModel

# The robust accuracy that twice the budget may take.
GAIN = 0.01
# At most so many survivors are attacked together, and never all, so that two workers share them. The parts do not depend on
# the number of workers, so that the rows do not either.
_TOGETHER = 32

TWICE_THE_BUDGET = Criterion(
    "twice the budget", kind="doubt", role="budget", remedy="a larger budget: doubling it still breaks more samples"
)


@dataclass(frozen=True)
class Survivors:
    """Samples that an evaluation did not break.

    Attributes:
        rows: their positions in the slice.
        values: their robust accuracies.
        to_beat: for a stochastic model, the shares of correct selection draws by which the candidates behind `values` were
            chosen.
        robust_accuracy: the sum of the accuracies of all survivors, of which these may be some, over all samples.
        doubled: labels of the attacks whose budget is to be doubled.
        otherwise: labels of other attacks; if none of `doubled` can be doubled, the first two of these that can are.
        tried: labels of the attacks that have seen all of these samples.
    """

    rows: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    to_beat: tuple[float, ...] = ()
    robust_accuracy: float = 0.0
    doubled: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()

    def parts(self) -> "list[Survivors]":
        """Return parts of about equal size, whose samples are attacked together."""
        number = min(len(self.rows), max(2, -(-len(self.rows) // _TOGETHER)))
        cuts = [len(self.rows) * part // number for part in range(number + 1)] if number else []
        return [
            replace(self, **{name: getattr(self, name)[start:end] for name in ("rows", "values", "to_beat")})
            for start, end in pairwise(cuts)
        ]


@dataclass(frozen=True)
class Retried:
    """The accuracies of some survivors before and after attacks of twice the budget.

    `attacks` holds the labels of the attacks; `failure`, unless empty, is the reason why they could not be carried out.
    """

    attacks: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    stochastic: bool = False
    failure: str = ""


def retried(
    model: Model, batch: Batch, threat: ThreatModel, seed: int, survivors: Survivors, attacks: Mapping[str, Attack]
) -> Retried:
    """Attack the survivors, which `batch` holds, with the attacks that are to be doubled."""
    doubled = _doubled(attacks, survivors)
    if not doubled:
        return Retried(failure="none of the suite's attacks can be given twice its budget")
    try:
        after = _after(model, batch, threat, derived_seed(seed, TWICE_THE_BUDGET.name), survivors, doubled)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
        return Retried(failure=f"{type(failure).__name__}: {failure}")
    return Retried(tuple(doubled), batch.samples, survivors.values, tuple(after), model.stochastic)


def budget_is_enough(parts: Sequence[Retried], robust_accuracy: float) -> Finding:
    """Return whether twice the budget breaks more.

    The gain is scaled to the whole evaluation by `robust_accuracy`, as in `Survivors`. For a stochastic model the threshold
    allows for two standard errors of the draws.
    """
    if not parts:
        return TWICE_THE_BUDGET.finding(0.0, GAIN, "no sample is left that twice the budget could break")
    for part in parts:
        if part.failure:
            return TWICE_THE_BUDGET.not_measured(f"could not be carried out: {part.failure}")
    samples = [sample for part in parts for sample in part.samples]
    before = [value for part in parts for value in part.before]
    after = [value for part in parts for value in part.after]
    scale = robust_accuracy / sum(before) if sum(before) else 0.0
    gain = (sum(before) - sum(after)) * scale
    variance = sum(p * (1 - p) / FRESH_DRAWS for pair in zip(before, after, strict=True) if pair[0] != pair[1] for p in pair)
    threshold = round(GAIN + 2 * scale * variance**0.5, 6) if parts[0].stochastic else GAIN
    statement = (
        f"twice the budget ({', '.join(parts[0].attacks)}; {len(samples)} of the surviving samples) takes {100 * gain:.1f} "
        "points of robust accuracy"
    )
    lowered = [sample for sample, old, new in zip(samples, before, after, strict=True) if new < old - 0.5]
    return TWICE_THE_BUDGET.finding(gain, threshold, statement, samples=lowered)


def _after(
    model: Model, batch: Batch, threat: ThreatModel, seed: int, survivors: Survivors, attacks: Mapping[str, Attack]
) -> list[float]:
    """Return the accuracies of the survivors after all attacks; selection draws choose, fresh ones score."""
    clean = judge_clean(model, batch, seed)
    values, to_beat = list(survivors.values), list(survivors.to_beat or survivors.values)
    rows = list(range(len(batch)))
    for label, attack in attacks.items():
        if not rows:
            break
        outcomes = judge(model, attack, label, batch.take(rows), threat, seed, [clean[row] for row in rows])
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome.status in (Status.ERROR, Status.INVALID):
                raise ValueError(f"{label}: {outcome.note}")
            right, draws = outcome.selection_correct, outcome.selection_draws
            share = right / draws if draws else float(outcome.status is Status.HELD)
            if share < to_beat[row]:
                to_beat[row] = share
                values[row] = outcome.fresh_correct / outcome.fresh_draws if draws else share
        rows = [row for row in rows if to_beat[row] > 0]
    return values


def _doubled(attacks: Mapping[str, Attack], survivors: Survivors) -> dict[str, Attack]:
    """Return the requested attacks at twice their budget, without those that cannot be doubled.

    An attack that has seen all of the samples only makes the other half.
    """

    def doubled(labels: Sequence[str]) -> dict[str, Attack]:
        known = {label: attacks[label] for label in labels if label in attacks}
        doubled = {
            label: attack.other_half() if label in survivors.tried else attack.doubled(1) for label, attack in known.items()
        }
        return {label: attack for label, attack in doubled.items() if attack is not None}

    return doubled(survivors.doubled) or dict(list(doubled(survivors.otherwise).items())[:2])
