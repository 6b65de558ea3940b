"""Check that attacks with twice the budget break no further samples."""

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

# The check fires if twice the budget lowers the robust accuracy by more than this.
GAIN = 0.01
# The largest number of survivors in one part. There are at least two parts, so that two workers can share them. The division
# does not depend on the number of workers, so that the results do not either.
_PART_SIZE = 32

TWICE_THE_BUDGET = Criterion(
    "twice the budget", kind="doubt", role="budget", remedy="a larger budget: doubling it still breaks more samples"
)


@dataclass(frozen=True)
class Survivors:
    """Samples that an evaluation did not break.

    Attributes:
        rows: their positions in the slice.
        values: their robust accuracies in the evaluation.
        to_beat: for a stochastic model, their lowest shares of correct selection draws in the evaluation. `values` change only
            if an attack finds a lower share.
        robust_accuracy: sum of the accuracies of all survivors, including those not in `rows`, divided by the number of all
            samples.
        doubled: labels of the attacks whose budget is to be doubled.
        otherwise: labels of attacks to use if none of `doubled` can be doubled: the first two that can be.
        tried: labels of the attacks that ran on all of these samples.
    """

    rows: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    to_beat: tuple[float, ...] = ()
    robust_accuracy: float = 0.0
    doubled: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()

    def parts(self) -> "list[Survivors]":
        """Divide the survivors into parts of about equal size, each of which is attacked as one batch."""
        number = min(len(self.rows), max(2, -(-len(self.rows) // _PART_SIZE)))
        cuts = [len(self.rows) * part // number for part in range(number + 1)] if number else []
        return [
            replace(self, **{name: getattr(self, name)[start:end] for name in ("rows", "values", "to_beat")})
            for start, end in pairwise(cuts)
        ]


@dataclass(frozen=True)
class Retried:
    """Accuracies of some survivors before and after attacks with twice the budget.

    `attacks` holds the labels of the attacks, `samples` the hashes of the survivors. If the attacks could not be carried out,
    `failure` says why; otherwise it is empty.
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
    """Attack the survivors with twice the budget. `batch` holds their images, `attacks` the attacks of the suite by label."""
    doubled = _with_twice_the_budget(attacks, survivors)
    if not doubled:
        return Retried(failure="none of the suite's attacks can be given twice its budget")
    try:
        after = _accuracies_after(model, batch, threat, derived_seed(seed, TWICE_THE_BUDGET.name), survivors, doubled)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
        return Retried(failure=f"{type(failure).__name__}: {failure}")
    return Retried(tuple(doubled), batch.samples, survivors.values, tuple(after), model.stochastic)


def budget_is_enough(parts: Sequence[Retried], robust_accuracy: float) -> Finding:
    """Return the finding on how much robust accuracy twice the budget takes.

    The loss on the survivors in `parts` is scaled to all survivors by `robust_accuracy` (see `Survivors`). For a stochastic
    model the threshold is raised by two standard errors, which the random draws explain.
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


def _accuracies_after(
    model: Model, batch: Batch, threat: ThreatModel, seed: int, survivors: Survivors, attacks: Mapping[str, Attack]
) -> list[float]:
    """Return the accuracies of the survivors after all attacks.

    For a stochastic model, selection draws choose the candidate of each sample, and fresh draws give its accuracy.
    """
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


def _with_twice_the_budget(attacks: Mapping[str, Attack], survivors: Survivors) -> dict[str, Attack]:
    """Return the requested attacks at twice their budget, without those that cannot be doubled.

    An attack that already ran on all of the samples only makes up the difference (see `Attack.other_half`).
    """

    def doubled(labels: Sequence[str]) -> dict[str, Attack]:
        known = {label: attacks[label] for label in labels if label in attacks}
        doubled = {
            label: attack.other_half() if label in survivors.tried else attack.doubled(1) for label, attack in known.items()
        }
        return {label: attack for label, attack in doubled.items() if attack is not None}

    return doubled(survivors.doubled) or dict(list(doubled(survivors.otherwise).items())[:2])
