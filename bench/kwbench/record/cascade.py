"""The course of an evaluation: which attacks run and which samples each one sees, derived from the record alone.

The runner uses it to decide what to run next, and `summarize` to derive the numbers, so that reruns, interruptions and reports
agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwbench.outcome import CLEAN, Status
from kwbench.record.evaluation import EvaluationSpec
from kwbench.record.tally import Tally

# An attack gained if it lowered the mean over the samples by at least this much: the mean of the lowest shares of right
# selection draws for a stochastic model, which noise alone lowers a little, otherwise the robust accuracy.
GAIN = 0.005

# Below this mean, a fifth of a gain, the remaining attacks are not worth their passes and are skipped.
NEGLIGIBLE = 0.001

# Value of a deterministic model's sample by the first letter of its status: 1 right, 0 wrong, NaN without an answer.
_VALUES = np.full(256, np.nan)
_VALUES[[ord(status[0]) for status in (Status.BROKEN, Status.WRONG)]] = 0.0
_VALUES[ord(Status.HELD[0])] = 1.0

# Raise it with any change that can change an outcome; see tests/golden.
REVISION = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """One attack in the course of an evaluation. Arrays have one entry per sample, in the order of the clean images' rows.

    Attributes:
        label: label of the attack in the suite.
        skipped: why the attack does not run; None if it runs, or if this cannot be decided yet.
        phases: masks of the samples to attack, one phase after the other. An attack with a screen attacks a subset of the
            samples first, and the others only if it gained on the subset.
        best: lowest value of each sample before this stage: the share of right selection draws of a stochastic model,
            otherwise 1 (right) or 0 (wrong).
        lowered: samples for which the attack found a better candidate than everything before it.
        finished: whether every sample in `phases` has a row.
        gained: whether the attack lowered the mean over the samples by at least `GAIN`.
    """

    label: str
    skipped: str | None
    phases: tuple[NDArray[np.bool_], ...]
    best: NDArray[np.float64]
    lowered: NDArray[np.bool_]
    finished: bool
    gained: bool

    @property
    def targets(self) -> NDArray[np.bool_]:
        """Mask of the samples to attack, over all phases."""
        union = self.phases[0]
        for phase in self.phases[1:]:
            union = union | phase
        return union


def stages(spec: EvaluationSpec, tallies: Sequence[Tally | None]) -> list[Stage]:
    """Return the stages of an evaluation's first attacks, one for each tally.

    Args:
        spec: the evaluation.
        tallies: the outcomes of its first attack runs, in order; None for a run without rows.
    """
    after = spec.spec.get("after", {})
    not_applicable = spec.spec.get("not_applicable", {})
    screens = spec.spec.get("screens", {})
    # Their accuracies stand beside the worst case.
    beside = spec.spec.get("beside", ())
    # The attacks of the protocol see all samples.
    necessary = {CLEAN, *(spec.spec.get("protocol_attacks") or ())}
    cascade = cascaded_attacks(spec)
    clean = next((tally for attack, tally in zip(spec.attacks, tallies, strict=False) if attack.label == CLEAN), None)
    index = clean.index if clean is not None else np.empty(0, dtype=np.int64)
    best, everything = np.ones(len(index)), np.ones(len(index), dtype=bool)
    by_label: dict[str, Stage] = {}
    for attack, recorded in zip(spec.attacks, tallies, strict=False):
        label = attack.label
        targets = best > 0 if label in cascade else everything
        robust = int(targets.sum())
        skipped = not_applicable.get(label) or _ruled_out(after.get(label, ()), by_label)
        if skipped is None and label in cascade - necessary and len(index) == spec.n and best.sum() < NEGLIGIBLE * spec.n:
            skipped = f"robust accuracy was already below {100 * NEGLIGIBLE:g} %"
        # The rows of a skipped attack belong to other evaluations, which share its run.
        tally = recorded if skipped is None else None
        values = align(index, tally, _values(tally, spec.stochastic))
        # Without an answer, a value is NaN and lowers nothing.
        lowest = best if label in beside else np.fmin(best, values)
        lowered, gain = lowest < best, best - lowest
        phases: tuple[NDArray[np.bool_], ...] = (targets,)
        if robust > screens.get(label, robust):
            screen = _spread_subset(targets, screens[label])
            goes_on = _covers(tally, index, screen) and _has_gained(gain, screen, robust, spec.n)
            phases = (screen, targets & ~screen) if goes_on else (screen,)
            targets = targets if goes_on else screen
        gained = _has_gained(gain, targets, robust, spec.n)
        by_label[label] = Stage(label, skipped, phases, best, lowered, _covers(tally, index, targets), gained)
        best = lowest
    return list(by_label.values())


def cascaded_attacks(spec: EvaluationSpec) -> frozenset[str]:
    """Return the labels of the attacks that see only samples that no attack before them broke: all, none, or some by name."""
    cascade = spec.spec.get("cascade", False)
    if isinstance(cascade, bool):
        return frozenset(attack.label for attack in spec.attacks if cascade and attack.label != CLEAN)
    return frozenset(cascade)


def align(index: NDArray[np.int64], tally: Tally | None, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values of an attack's rows in the order of the positions in `index`; NaN where there is no row."""
    if tally is None:
        return np.full(len(index), np.nan)
    if tally.index is index:
        return values
    aligned = np.full(len(index), np.nan)
    known = np.isin(tally.index, index, assume_unique=True)
    aligned[np.searchsorted(index, tally.index[known])] = values[known]
    return aligned


def _spread_subset(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Return a mask of `count` of the samples in `mask`, spread evenly over them."""
    samples = np.flatnonzero(mask)
    chosen = samples[np.linspace(0, len(samples) - 1, count).round().astype(int)]
    return np.isin(np.arange(len(mask)), chosen)


def _has_gained(gain: NDArray[np.float64], seen: NDArray[np.bool_], robust: int, n: int) -> bool:
    """Return whether the gain on the samples seen, scaled up to all `robust` ones, lowers the mean over n by `GAIN`."""
    total = gain.sum() if seen.all() else gain[seen].sum()
    return bool(total * robust >= GAIN * n * max(1, int(seen.sum())))


def _covers(tally: Tally | None, index: NDArray[np.int64], targets: NDArray[np.bool_]) -> bool:
    """Return whether there is a row for every sample in `targets`."""
    if tally is None or tally.index is not index:
        present = align(index, tally, np.ones(0 if tally is None else len(tally))) > 0
        return bool(present[targets].all())
    return True


def _values(tally: Tally | None, stochastic: bool) -> NDArray[np.float64]:
    if tally is None:
        return np.empty(0)
    if stochastic:
        return tally.selection if len(tally.selection) else np.full(len(tally), np.nan)
    return _VALUES.take(tally.status.view(np.uint8))


def _ruled_out(after: Sequence[str], before: dict[str, Stage]) -> str | None:
    """Return why an attack is skipped that runs only if one of `after` gained; None if it runs or they are not finished."""
    conditions = [before[label] for label in after if label in before]
    if not after or any(stage.gained or not (stage.finished or stage.skipped) for stage in conditions):
        return None
    return f"{', '.join(after)} gained nothing"
