"""Twice the budget: attacks that spend as much again, with other random numbers, must find nothing new."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from kwbench.attacks.attack import Attack
from kwbench.data import Batch
from kwbench.finding import Finding
from kwbench.judge import FRESH_DRAWS, judge, judge_clean
from kwbench.model import Model
from kwbench.outcome import Status
from kwbench.randomness import derived_seed
from kwbench.threat import ThreatModel

CHECK = "twice the budget"
# Points of robust accuracy that twice the budget may bring.
GAIN = 0.01
# At most so many survivors are attacked together, and never all, so that every worker has some: whatever their number, for the
# same rows.
_TOGETHER = 32


@dataclass(frozen=True)
class Survivors:
    """Samples that an evaluation did not break, by positions in the slice, with their accuracies in `values`; `standing` is the
    share of all samples that survived it, weighted by their accuracies.

    `to_beat` are the shares of right selection draws by which the candidates behind `values` were chosen, for a stochastic
    model. `doubled` are the labels of attacks whose budget is to be doubled; where none of them can be, the first two of
    `otherwise` that can. `tried` are those that have been made on all of these samples.
    """

    rows: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    to_beat: tuple[float, ...] = ()
    standing: float = 0.0
    doubled: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()

    def parts(self) -> "list[Survivors]":
        """Those that are attacked together, about as many in each part."""
        number = min(len(self.rows), max(2, -(-len(self.rows) // _TOGETHER)))
        cuts = [len(self.rows) * part // number for part in range(number + 1)] if number else []
        return [
            replace(self, **{name: getattr(self, name)[start:end] for name in ("rows", "values", "to_beat")})
            for start, end in pairwise(cuts)
        ]


@dataclass(frozen=True)
class Retried:
    """What attacks of twice their budget, by their labels, leave of some survivors: their accuracies before and after.

    `failure` says why they could not be carried out.
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
    """Attack the survivors, which `batch` holds, with those of the attacks that are to be doubled."""
    doubled = _doubled(attacks, survivors)
    if not doubled:
        return Retried(failure="none of the suite's attacks can be given twice its budget")
    try:
        after = _after(model, batch, threat, derived_seed(seed, CHECK), survivors, doubled)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as failure:  # noqa: BLE001 - foreign code may raise anything
        return Retried(failure=f"{type(failure).__name__}: {failure}")
    return Retried(tuple(doubled), batch.samples, survivors.values, tuple(after), model.stochastic)


def budget_is_enough(parts: Sequence[Retried], standing: float) -> Finding:
    """Whether twice the budget finds more. The gain is scaled to the whole evaluation by `standing`, as of `Survivors`. On a
    stochastic model the threshold allows for two standard errors of the draws.
    """
    if not parts:
        return Finding(CHECK, 0.0, GAIN, False, "nothing is left that twice the budget could break", (), "doubt")
    for part in parts:
        if part.failure:
            return Finding(CHECK, None, 0.0, False, f"could not be carried out: {part.failure}"[:500], (), "doubt")
    samples = [sample for part in parts for sample in part.samples]
    before = [value for part in parts for value in part.before]
    after = [value for part in parts for value in part.after]
    # To all that stood, of which these are some.
    scale = standing / sum(before) if sum(before) else 0.0
    gain = (sum(before) - sum(after)) * scale
    variance = sum(p * (1 - p) / FRESH_DRAWS for pair in zip(before, after, strict=True) if pair[0] != pair[1] for p in pair)
    threshold = round(GAIN + 2 * scale * variance**0.5, 6) if parts[0].stochastic else GAIN
    statement = (
        f"twice the budget ({', '.join(parts[0].attacks)}; {len(samples)} of the samples that stood) takes {100 * gain:.1f} "
        "points of robust accuracy"
    )
    lowered = tuple(sample for sample, one, other in zip(samples, before, after, strict=True) if other < one - 0.5)
    return Finding(CHECK, round(gain, 6), threshold, gain > threshold, statement, lowered, "doubt")


def _after(
    model: Model, batch: Batch, threat: ThreatModel, seed: int, survivors: Survivors, attacks: Mapping[str, Attack]
) -> list[float]:
    """The accuracies of the survivors once all of the attacks have tried; as in an evaluation, selection draws choose and fresh
    ones score."""
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
    """The attacks that are asked for, as they make up twice their budget; without those that have none to double."""

    def doubled(labels: Sequence[str]) -> dict[str, Attack]:
        known = {label: attacks[label] for label in labels if label in attacks}
        doubled = {
            label: attack.other_half() if label in survivors.tried else attack.doubled(1) for label, attack in known.items()
        }
        return {label: attack for label, attack in doubled.items() if attack is not None}

    return doubled(survivors.doubled) or dict(list(doubled(survivors.otherwise).items())[:2])
