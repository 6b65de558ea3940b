"""How an evaluation goes on: which attacks run and which samples each is to see, from the record alone.

The runner asks it what comes next, and `standing` what the record comes to, so that reruns, interruptions and reports agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwbench.outcome import CLEAN, Status
from kwbench.record.store import EvaluationSpec, Tally

# An attack gained if it lowered the mean over the samples by at least this much: of the best selection shares of a stochastic
# model, whose noise alone may do so at the cost of passes and of no truth, or else of who stands.
GAIN = 0.005

# What may be left of the mean over the samples for an attack not to be worth its passes: a fifth of a gain.
LEFT = 0.001

# The value of a deterministic model's sample by the first letter of its status: right or not, NaN where there is no answer.
_VALUES = np.full(256, np.nan)
_VALUES[[ord(status[0]) for status in (Status.BROKEN, Status.WRONG)]] = 0.0
_VALUES[ord(Status.HELD[0])] = 1.0

# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One attack of an evaluation in its turn; arrays have one entry a sample, in the order of the clean images' rows.

    `skipped` says why it does not run, None where it does or where this cannot be told yet. It is to attack the samples that
    it `sees`, one of its `portions` after the other: with a screen some of those that stand, and once it gained there the
    others. `best` is the least value of each sample before it: the share of right selection draws of a stochastic model, else 1
    or 0, right or not. `lowered`: where it found a better candidate than all before it. `finished`: it has a row for
    every sample that it sees. `gained`: what it found is worth going on in its direction.
    """

    label: str
    skipped: str | None
    portions: tuple[NDArray[np.bool_], ...]
    best: NDArray[np.float64]
    lowered: NDArray[np.bool_]
    finished: bool
    gained: bool

    @property
    def sees(self) -> NDArray[np.bool_]:
        """All portions together."""
        together = self.portions[0]
        for more in self.portions[1:]:
            together = together | more
        return together


def turns(spec: EvaluationSpec, rows: Sequence[Tally | None]) -> list[Turn]:
    """The turns of the attacks of an evaluation, as far as `rows` go: the outcomes of its first attack runs, None if empty."""
    after = spec.spec.get("after", {})
    not_applicable = spec.spec.get("not_applicable", {})
    screens = spec.spec.get("screens", {})
    # A protocol meets all samples.
    necessary = {CLEAN, *(spec.spec.get("protocol_attacks") or ())}
    cascade = cascaded(spec)
    clean = next((row for each, row in zip(spec.attacks, rows, strict=False) if each.label == CLEAN), None)
    index = clean.index if clean is not None else np.empty(0, dtype=np.int64)
    best = np.ones(len(index))
    found: dict[str, Turn] = {}
    for each, recorded in zip(spec.attacks, rows, strict=False):
        sees = best > 0 if each.label in cascade else np.ones(len(index), dtype=bool)
        standing = int(sees.sum())
        skipped = not_applicable.get(each.label) or _ruled_out(after.get(each.label, ()), found)
        if skipped is None and each.label in cascade - necessary and len(index) == spec.n and best.sum() < LEFT * spec.n:
            skipped = "hardly anything was left to break"
        # What ran for another evaluation is no part of this one.
        row = recorded if skipped is None else None
        values = onto(index, row, _values(row, spec.stochastic))
        lowered = values < best
        gain = np.where(lowered, best - values, 0.0)
        portions: tuple[NDArray[np.bool_], ...] = (sees,)
        if standing > screens.get(each.label, standing):
            some = _some(sees, screens[each.label])
            goes_on = _covers(row, index, some) and _worth_it(gain, some, standing, spec.n)
            portions = (some, sees & ~some) if goes_on else (some,)
            sees = sees if goes_on else some
        gained = _worth_it(gain, sees, standing, spec.n)
        found[each.label] = Turn(each.label, skipped, portions, best, lowered, _covers(row, index, sees), gained)
        best = np.where(lowered, values, best)
    return list(found.values())


def _some(sees: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """So many of the samples, from all over them."""
    standing = np.flatnonzero(sees)
    chosen = standing[np.linspace(0, len(standing) - 1, count).round().astype(int)]
    return np.isin(np.arange(len(sees)), chosen)


def _worth_it(gain: NDArray[np.float64], seen: NDArray[np.bool_], standing: int, n: int) -> bool:
    """Whether an attack gained; of some samples, what it would have gained of all that stood."""
    return bool(gain[seen].sum() * standing >= GAIN * n * max(1, int(seen.sum())))


def cascaded(spec: EvaluationSpec) -> frozenset[str]:
    """The attacks that see only the samples that still stand: all, none, or those that the record names."""
    cascade = spec.spec.get("cascade", False)
    if isinstance(cascade, bool):
        return frozenset(each.label for each in spec.attacks if cascade and each.label != CLEAN)
    return frozenset(cascade)


def onto(index: NDArray[np.int64], row: Tally | None, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of an attack's rows, one for each sample of `index`; NaN where there is no row."""
    if row is None:
        return np.full(len(index), np.nan)
    if row.index is index:
        return values
    aligned = np.full(len(index), np.nan)
    known = np.isin(row.index, index, assume_unique=True)
    aligned[np.searchsorted(index, row.index[known])] = values[known]
    return aligned


def _covers(row: Tally | None, index: NDArray[np.int64], sees: NDArray[np.bool_]) -> bool:
    """Whether there is a row for every sample that an attack sees."""
    if row is None or row.index is not index:
        present = onto(index, row, np.ones(0 if row is None else len(row))) > 0
        return bool(present[sees].all())
    return True


def _values(row: Tally | None, stochastic: bool) -> NDArray[np.float64]:
    if row is None:
        return np.empty(0)
    if stochastic:
        return row.selection if len(row.selection) else np.full(len(row), np.nan)
    values: NDArray[np.float64] = _VALUES[row.status.view(np.uint8)]
    return values


def _ruled_out(after: Sequence[str], before: dict[str, Turn]) -> str | None:
    """Why an attack does not run that runs only after gains of others; None if it does, or they are not finished."""
    conditions = [before[label] for label in after if label in before]
    if not after or any(turn.gained or not (turn.finished or turn.skipped) for turn in conditions):
        return None
    return f"{', '.join(after)} gained nothing"
