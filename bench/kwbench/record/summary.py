"""The numbers of an evaluation: of each attack, and of the worst case over all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kwbench.finding import Finding
from kwbench.record.cascade import cascaded_attacks
from kwbench.record.evaluation import AttackSpec, Evaluation
from kwbench.statistics import Interval, accuracy_of_hits, accuracy_of_values
from kwbench.threat import ThreatModel

Values = NDArray[np.float64]


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
