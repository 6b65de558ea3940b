"""The numbers of an evaluation, derived from its outcomes alone.

Deterministic models: A_std is the share of samples that are right on the clean images, the accuracy under an attack the share
that it did not break, and A_rob the share that no attack broke.

Stochastic models: let p be the probability that a prediction is right. A_std and the accuracy under an attack are means of p,
measured on fresh draws. A_rob is the mean of p at one candidate per sample, which the selection draws chose. The minimum over
fresh draws would suffer from the winner's curse: ten attacks that do nothing turn p = 0.87 into 0.79.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from kwbench.outcome import CLEAN, Status
from kwbench.record.cascade import Stage, align, cascaded_attacks, stages
from kwbench.record.evaluation import AttackSpec, Evaluation, EvaluationSpec
from kwbench.record.summary import AttackSummary, Summary, Values
from kwbench.record.tally import Tally
from kwbench.statistics import Interval, accuracy_of_hits, accuracy_of_values

_CODES = {status.value: ord(status.value[0]) for status in Status}
_HELD = ord(Status.HELD[0])


def derive(
    evaluation: Evaluation, tallies: Mapping[int, Tally], reasons: Mapping[int, Mapping[str, int]] = MappingProxyType({})
) -> Summary:
    """Return the numbers of an evaluation, without those that depend on more than tallies, such as findings and certificates.

    Args:
        evaluation: the evaluation.
        tallies: the outcomes of its attack runs, by the id of the run; they may include other runs.
        reasons: the notes of outcomes that are invalid or errors, each with its count, by attack run.
    """
    spec = evaluation.spec
    cascade = cascaded_attacks(spec)
    rows = [tallies.get(evaluation.attack_runs[attack.label]) for attack in spec.attacks]
    course = stages(spec, rows)
    # The clean images define the samples of the evaluation, and their order.
    clean_rows = next((tally for attack, tally in zip(spec.attacks, rows, strict=True) if attack.label == CLEAN), None)
    index = clean_rows.index if clean_rows is not None else np.empty(0, dtype=np.int64)
    values = _worst_cases(course, rows, index, spec.stochastic)
    worst = np.zeros(len(index), dtype=np.intp)
    for position, stage in enumerate(course):
        worst[stage.lowered] = position
    broke = np.bincount(worst, minlength=len(course)).tolist()
    # Labels of the incomplete attacks, by what they lack.
    incomplete: dict[str, list[str]] = {}
    by_label: dict[str, AttackSummary] = {}
    for position, (attack, tally, stage) in enumerate(zip(spec.attacks, rows, course, strict=True)):
        if stage.skipped is not None:
            continue
        label, counts = attack.label, _count_statuses(tally)
        lack = _find_lack(tally, counts, stage, index, spec, cascaded=label in cascade)
        if lack:
            lack += _reason(reasons.get(evaluation.attack_runs[label], {}))
            incomplete.setdefault(lack, []).append(label)
        remaining = _accuracy(values[position], spec.stochastic) if label in cascade and not incomplete else None
        numbers = _summarize_attack(attack, tally, counts, spec, complete=not lack)
        by_label[label] = replace(numbers, remaining=remaining, broke=broke[position])
    missing = [f"{', '.join(labels)}: {lack}" for lack, labels in incomplete.items()]
    if clean_rows is None:
        missing.insert(0, "there are no outcomes of the clean images")
    if all(attack.label == CLEAN for attack in spec.attacks):
        missing.append("there is no attack")
    clean = by_label.get(CLEAN)
    a_std = clean.accuracy if clean is not None else None
    robust_values = values[-1] if not missing else None
    protocol_values = _protocol_values(spec, rows, index, [label for labels in incomplete.values() for label in labels])
    return Summary(
        evaluation=evaluation,
        complete=not missing,
        missing=tuple(missing),
        a_std=a_std,
        a_rob=None if robust_values is None else _accuracy(robust_values, spec.stochastic),
        a_rob_as_in_paper=_smallest_accuracy(spec, by_label),
        clean=clean,
        attacks=tuple(attack for attack in by_label.values() if attack.name != CLEAN),
        index=index,
        clean_values=_values(clean_rows, spec.stochastic) if clean_rows is not None and a_std is not None else None,
        robust_values=robust_values,
        skipped={stage.label: stage.skipped for stage in course if stage.skipped is not None},
        a_protocol=None if protocol_values is None else _accuracy(protocol_values, spec.stochastic),
        protocol_values=protocol_values,
        worst_attacks=worst if robust_values is not None else None,
        guarded=evaluation.guarded and all(tally.guarded for tally in rows if tally is not None),
    )


def _worst_cases(
    course: Sequence[Stage], rows: Sequence[Tally | None], index: NDArray[np.int64], stochastic: bool
) -> list[Values]:
    """Return the value of each sample after each attack: that of the candidate which the selection has chosen by then."""
    values = np.ones(len(index))
    after = []
    for stage, tally in zip(course, rows, strict=True):
        # The clean images are the first candidate, whatever their selection draws are.
        if stage.label == CLEAN or (stochastic and stage.lowered.any()):
            scores = np.full(len(index), np.nan) if tally is None else align(index, tally, _values(tally, stochastic))
            values = scores if stage.label == CLEAN else np.where(stage.lowered, scores, values)
        elif stage.lowered.any():
            # A deterministic model is wrong wherever an attack lowered its value.
            values = np.where(stage.lowered, 0.0, values)
        after.append(values)
    return after


def _protocol_values(
    spec: EvaluationSpec, rows: Sequence[Tally | None], index: NDArray[np.int64], incomplete: Collection[str]
) -> Values | None:
    """Return the worst case over the attacks of the suite's protocol alone; None without a protocol, or if it lacks rows."""
    # Attacks that cannot be made for the model, such as those on gradients where there are only labels, say nothing.
    protocol = {CLEAN, *(spec.spec.get("protocol_attacks") or ())} - set(spec.spec.get("not_applicable", {}))
    members = [(attack, tally) for attack, tally in zip(spec.attacks, rows, strict=True) if attack.label in protocol]
    if len(members) < 2 or any(attack.label in incomplete for attack, _ in members):
        return None
    member_rows = [tally for _, tally in members]
    course = stages(replace(spec, attacks=tuple(attack for attack, _ in members), spec={}), member_rows)
    return _worst_cases(course, member_rows, index, spec.stochastic)[-1]


def _find_lack(  # noqa: PLR0911 - one reason after the other
    tally: Tally | None,
    counts: Mapping[str, int],
    stage: Stage,
    index: NDArray[np.int64],
    spec: EvaluationSpec,
    *,
    cascaded: bool,
) -> str | None:
    """Return why an attack does not have a valid row for every sample that it should see; None if it has."""
    n = spec.n
    expected = int(stage.targets.sum()) if cascaded and len(index) == n else n
    if tally is None:
        return f"0 of {expected} samples" if expected else None
    for status in (Status.ERROR, Status.INVALID):
        if count := counts[status]:
            return f"{count} of {len(tally)} rows {status.value}"
    if len(index) != n:
        return f"{len(tally)} of {n} samples, {len(index)} of the clean images"
    # Attack runs on the same samples share one array. Comparing it with itself would take most of the time.
    if tally.index is not index and not np.isin(tally.index, index, assume_unique=True).all():
        return "rows of other samples than the clean images"
    if not stage.finished:
        return f"{int(np.isin(index[stage.targets], tally.index, assume_unique=True).sum())} of {expected} samples"
    if spec.stochastic:
        # In a cascade only candidates that lowered the selection share need fresh draws.
        scored = stage.lowered if cascaded else np.ones(n, dtype=bool)
        drawn = len(tally.selection) == len(tally) and not np.isnan(tally.selection).any()
        if not drawn or np.isnan(align(index, tally, tally.fresh)[scored]).any():
            return "rows without draws"
    return None


def _reason(notes: Mapping[str, int]) -> str:
    """Return the most frequent reason why rows are invalid or errors, in brackets."""
    stated = sorted((note for note in notes if note), key=lambda note: (-notes[note], note))
    if not stated:
        return ""
    others = {1: "", 2: ", and another reason"}.get(len(stated), f", and {len(stated) - 1} other reasons")
    return f" ({stated[0]}{others})"


def _summarize_attack(
    attack: AttackSpec, tally: Tally | None, counts: Mapping[str, int], spec: EvaluationSpec, *, complete: bool
) -> AttackSummary:
    """Return the numbers that an attack has on its own."""
    n, stochastic = spec.n, spec.stochastic
    budget = spec.spec.get("passes", {}).get(attack.label)
    parameters = attack.spec.get("parameters", {})
    surrogate = parameters.get("surrogate") if isinstance(parameters, Mapping) else None
    if tally is None:
        return AttackSummary(attack.label, attack, 0, None, None, counts, 0, 0, 0.0, surrogate=surrogate, budget=budget)
    has_accuracy = complete and len(tally) == n and not (stochastic and np.isnan(tally.fresh).any())
    accuracy = None
    if has_accuracy:
        accuracy = accuracy_of_values(tally.fresh) if stochastic else accuracy_of_hits(counts[Status.HELD], n)
    # Samples that were wrong before the attack have no status under the other judging rule.
    judged_twice = has_accuracy and not stochastic and 0 < tally.other_rows == n - counts[Status.WRONG]
    return AttackSummary(
        name=attack.label,
        spec=attack,
        n=len(tally),
        accuracy=accuracy,
        remaining=None,
        statuses=counts,
        forwards=tally.forwards,
        backwards=tally.backwards,
        seconds=round(tally.seconds, 6),
        other_accuracy=accuracy_of_hits(tally.other_held, n) if judged_twice else None,
        surrogate=surrogate,
        surrogate_accuracy=accuracy_of_hits(tally.surrogate_right, tally.surrogate_rows) if tally.surrogate_rows else None,
        budget=budget,
    )


def _count_statuses(tally: Tally | None) -> dict[str, int]:
    codes = np.empty(0, dtype=np.uint8) if tally is None else tally.status.view(np.uint8)
    return {status: int(np.count_nonzero(codes == code)) for status, code in _CODES.items()}


def _values(tally: Tally, stochastic: bool) -> Values:
    if stochastic:
        return tally.fresh if len(tally.fresh) else np.full(len(tally), np.nan)
    held: NDArray[np.bool_] = tally.status.view(np.uint8) == _HELD
    return held.astype(float)


def _accuracy(values: Values, stochastic: bool) -> Interval:
    return accuracy_of_values(values) if stochastic else accuracy_of_hits(int(values.sum()), len(values))


def _smallest_accuracy(spec: EvaluationSpec, attacks: Mapping[str, AttackSummary]) -> Interval | None:
    """Return the smallest accuracy under a single attack of the paper's table, by default of all in the worst case; None if one
    has no accuracy."""
    labels, beside = spec.spec.get("paper_attacks"), {CLEAN, *spec.spec.get("beside", ())}
    wanted = [name for name in attacks if name not in beside] if labels is None else labels
    accuracies = [attacks[name].accuracy if name in attacks else None for name in wanted]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return min(known, key=lambda accuracy: accuracy.value) if known and len(known) == len(accuracies) else None
