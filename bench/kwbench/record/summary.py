"""The numbers of an evaluation, derived from its outcomes alone and computed anew each time.

Deterministic models: A_std is the share of samples that are right on the clean images, the accuracy under an attack the share
that it did not break, and A_rob the share that no attack broke.

Stochastic models: let p be the probability that a prediction is right. A_std and the accuracy under an attack are means of p,
measured on fresh draws. A_rob is the mean of p at one candidate per sample, which the selection draws chose. The minimum over
fresh draws would suffer from the winner's curse: ten attacks that do nothing turn p = 0.87 into 0.79.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kwbench.finding import Finding
from kwbench.outcome import CLEAN, Status
from kwbench.record.abstention import with_excused
from kwbench.record.cascade import Stage, align, cascaded_attacks, stages
from kwbench.record.certificates import with_certificates
from kwbench.record.evaluation import AttackSpec, Evaluation, EvaluationSpec
from kwbench.record.label_order import with_label_hints
from kwbench.record.store import Store
from kwbench.record.tally import Tally
from kwbench.statistics import Interval, accuracy_of_hits, accuracy_of_values
from kwbench.threat import ThreatModel

Values = NDArray[np.float64]

_CODES = {status.value: ord(status.value[0]) for status in Status}
_HELD = ord(Status.HELD[0])


@dataclass(frozen=True, slots=True)
class AttackSummary:
    """The numbers of one attack; accuracies are fractions of 1 with 95 % intervals.

    Attributes:
        name: its label in the suite.
        spec: what was run.
        n: number of rows; in a cascade, fewer than the samples.
        accuracy: accuracy under this attack; None unless it has a valid row for every sample.
        remaining: accuracy after this attack and all before it; None outside a cascade.
        statuses: number of rows by status.
        forwards: forward passes of samples, summed over all rows.
        backwards: backward passes of samples, summed over all rows.
        seconds: time, summed over all rows; each row has its share of the batch's time.
        other_accuracy: accuracy under the judging rule that was not chosen (minimum-norm attacks).
        surrogate: name of the surrogate (transfer attacks).
        surrogate_accuracy: accuracy of the surrogate on the images made against it.
        broke: samples whose worst case this attack is. Deterministic models: no attack before it broke them. Stochastic models:
            the chosen candidate is its own.
        budget: largest number of passes, forward and backward, that the attack may spend on a sample; None if not declared.
    """

    name: str
    spec: AttackSpec
    n: int
    accuracy: Interval | None
    remaining: Interval | None
    statuses: Mapping[str, int]
    forwards: int
    backwards: int
    seconds: float
    other_accuracy: Interval | None = None
    surrogate: str | None = None
    surrogate_accuracy: Interval | None = None
    broke: int = 0
    budget: int | None = None

    @property
    def used(self) -> float:
        """Passes, forward and backward, per sample that the attack saw."""
        return (self.forwards + self.backwards) / self.n if self.n else 0.0

    @property
    def precision(self) -> str | None:
        """The precision that it searched in; None if it has none to choose."""
        parameters = self.spec.spec.get("parameters", {})
        return parameters.get("precision") if isinstance(parameters, Mapping) else None


@dataclass(frozen=True, slots=True)
class Summary:
    """An evaluation and its numbers: fractions of 1 with 95 % intervals, None where there is no valid number.

    Attributes:
        evaluation: the evaluation.
        complete: whether every attack has a valid row for every sample that it should see. Otherwise there is no `a_rob`, and
            the evaluation is not ranked.
        missing: why it is not complete.
        a_std: accuracy on the clean images.
        a_rob: accuracy under the worst case of all attacks, per sample.
        a_rob_as_in_paper: smallest of the accuracies under single attacks, over those of the paper's table, otherwise over all.
        clean: the numbers of the clean images.
        attacks: the numbers of the attacks that ran, without the clean images.
        index: position of each sample in the split; the values below have this order.
        clean_values: value of each sample behind A_std: 0 or 1, or the estimated p of a stochastic model.
        robust_values: likewise behind A_rob.
        skipped: why an attack did not run, by label.
        a_protocol: accuracy under the worst case of the suite's `protocol` alone; None if the suite names none.
        protocol_values: value of each sample behind A_protocol.
        worst_attacks: number of the attack behind each robust value, by its position among the attacks of the specification.
        findings: findings of the diagnostic checks; empty if none were run.
        guarded: whether checksums show that everything behind the numbers is what was written.
        a_rob_excused: A_rob of a model that may abstain, if abstaining on an attacked image counts as right; None for others.
        label_hint: the order of the classes under which A_std would be far higher; None if there is none.
        certified: whether each sample is certified, in the order of `index`; None without certificates on record.
        certified_values: of a model with Gaussian noise on its input, lower bounds of the probabilities of right predictions in
            the whole ball, jointly at 0.999; None without them.
    """

    evaluation: Evaluation
    complete: bool
    missing: tuple[str, ...]
    a_std: Interval | None
    a_rob: Interval | None
    a_rob_as_in_paper: Interval | None
    clean: AttackSummary | None
    attacks: tuple[AttackSummary, ...]
    index: NDArray[np.int64] = field(repr=False, compare=False)
    clean_values: Values | None = field(repr=False, compare=False)
    robust_values: Values | None = field(repr=False, compare=False)
    skipped: Mapping[str, str] = field(default_factory=dict)
    a_protocol: Interval | None = None
    protocol_values: Values | None = field(default=None, repr=False, compare=False)
    worst_attacks: NDArray[np.intp] | None = field(default=None, repr=False, compare=False)
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    guarded: bool = field(default=True, compare=False)
    label_hint: str | None = field(default=None, repr=False, compare=False)
    certified: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)
    a_rob_excused: Interval | None = None
    certified_values: Values | None = field(default=None, repr=False, compare=False)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.evaluation.spec.model

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.evaluation.spec.dataset

    @property
    def n(self) -> int:
        """Number of samples that the evaluation asks for."""
        return self.evaluation.spec.n

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius."""
        return self.evaluation.spec.threat

    @property
    def worst(self) -> tuple[str, ...]:
        """Label of the attack behind each robust value, `clean` if there is none; empty without robust values."""
        if self.worst_attacks is None:
            return ()
        labels = [attack.label for attack in self.evaluation.spec.attacks]
        return tuple([labels[position] for position in self.worst_attacks.tolist()])

    @property
    def stochastic(self) -> bool:
        """Whether the model's predictions are random."""
        return self.evaluation.spec.stochastic

    @property
    def earlier_version(self) -> bool:
        """Whether an earlier version of kwbench made the evaluation; see `Evaluation.earlier_version`."""
        return self.evaluation.earlier_version

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the model, as found when it was loaded, and about the record; one clause each."""
        unguarded = () if self.guarded else ("recorded without checksums, so damage to its rows could go unnoticed",)
        hint = () if self.label_hint is None else (self.label_hint,)
        wrong = self.contradicted
        contradiction = (f"attacks broke images {wrong}, which are certified: an error in kwbench",) if wrong else ()
        return (*contradiction, *self.evaluation.spec.provenance.get("notes", ()), *self._excused, *hint, *unguarded)

    @property
    def a_certified(self) -> Interval | None:
        """Lower bound of the robust accuracy: the share of samples that are certified; None without certificates."""
        if self.certified_values is not None:
            return accuracy_of_values(self.certified_values)
        return None if self.certified is None else accuracy_of_hits(int(self.certified.sum()), len(self.certified))

    @property
    def bounds(self) -> Literal["exact", "bracketed"] | None:
        """`exact` if each sample is either broken or certified, `bracketed` if only some are; None without certificates."""
        if self.robust_values is None or (self.certified is None and self.certified_values is None):
            return None
        if self.certified is None:
            return "bracketed"
        return "exact" if np.array_equal(self.certified, self.robust_values > 0) else "bracketed"

    @property
    def contradicted(self) -> list[int]:
        """Positions of the certified samples that an attack broke: there is an error in kwbench, or in the record."""
        if self.certified is None or self.robust_values is None:
            return []
        broken: list[int] = self.index[self.certified & (self.robust_values == 0)].tolist()
        return broken

    @property
    def _excused(self) -> tuple[str, ...]:
        if self.a_rob_excused is None:
            return ()
        return (f"A_rob {100 * self.a_rob_excused.value:.1f} if abstaining is excused, by attacks that do not avoid it",)

    @property
    def cascade(self) -> bool:
        """Whether some attacks, or all, saw only the samples that no attack before them broke."""
        return bool(cascaded_attacks(self.evaluation.spec))

    @property
    def protocol(self) -> tuple[str, ...]:
        """Labels of the attacks behind `a_protocol`."""
        return tuple(self.evaluation.spec.spec.get("protocol_attacks") or ())

    @property
    def budget(self) -> int | None:
        """Largest number of passes that the attacks that ran may spend on a sample, in total; None if one is not declared."""
        budgets = [attack.budget for attack in self.attacks]
        return sum(budget for budget in budgets if budget is not None) if budgets and None not in budgets else None

    @property
    def used(self) -> float:
        """Passes, forward and backward, per sample of the evaluation, over all attacks."""
        return sum(attack.forwards + attack.backwards for attack in self.attacks) / self.n


def summaries(store: Store, evaluations: Sequence[Evaluation] | None = None) -> list[Summary]:
    """Return the numbers of evaluations, by default of all on record, oldest first."""
    chosen = store.evaluations() if evaluations is None else evaluations
    runs = None if evaluations is None else sorted({run for one in chosen for run in one.attack_runs.values()})
    tallies = store.tallies(runs)
    findings = store.findings_by_evaluation(None if evaluations is None else [one.id for one in evaluations])
    reasons = store.reasons({run for run, tally in tallies.items() if tally.failed})
    summarized = [replace(_summarize(one, tallies, reasons), findings=tuple(findings.get(one.id, ()))) for one in chosen]
    summarized = [with_excused(store, summary) for summary in summarized]
    return with_certificates(store, with_label_hints(store, summarized))


def _summarize(
    evaluation: Evaluation, tallies: Mapping[int, Tally], reasons: Mapping[int, Mapping[str, int]] = MappingProxyType({})
) -> Summary:
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
