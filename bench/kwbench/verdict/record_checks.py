"""Checks that read only the recorded outcomes of an evaluation, and need neither the model nor torch.

Some checks compare groups of attacks by the information that they use: exact gradients, softened gradients, function values
only, or another model. If such a group breaks samples that attacks on exact gradients tried and did not break, the exact
gradients are masked (Athalye et al. 2018, arXiv:1802.00420; Carlini et al. 2019, arXiv:1902.06705).

To add a check, write a function and add a line to RECORD_CHECKS.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from kwbench.finding import Check, Criterion, Finding
from kwbench.outcome import ASKED_AGAIN, CLEAN, Outcome, Status
from kwbench.record.comparability import comparison_key
from kwbench.record.contradictions import below_gaussian_bounds
from kwbench.record.summary import Summary
from kwbench.statistics import difference_interval
from kwbench.threat import ThreatModel
from kwbench.verdict.attack_groups import Group, group_of, parameters_of, steps_of

# A group check fires above this share of the samples. On models without gradient masking, other attacks break up to 1 % of the
# samples that strong gradient attacks did not break, because they start elsewhere.
GAP = 0.02
# A group check does not fire for fewer samples than this, which may be chance.
FEWEST = 3
# On fewer samples any gain above GAP without the model's own gradients is a doubt, even if it may be chance.
SMALL = 100
# Attacks with a single step are compared with attacks that take at least this many steps.
MANY_STEPS = 10
# A check fires if the last doubling of a budget lowers the robust accuracy by more than this.
GAIN = 0.01
# A check fires if the robust accuracy exceeds that of the same network with ReLU, the twin, by significantly more than this.
TWIN_LEAD = 0.05
# The activation in the name of a model that has a ReLU twin.
_ACTIVATION = re.compile(r"(?:kwta|slwta|lwta)[0-9.]*")

# The best published robust accuracies, by data set, norm and eps, from RobustBench (arXiv:2010.09670, March 2025).
BEST_KNOWN: dict[tuple[str, str, Fraction], float] = {
    ("cifar10", "linf", Fraction(8, 255)): 0.7371,  # Bartoldson et al. 2024, arXiv:2404.09349, WRN-94-16
    ("cifar10", "l2", Fraction(1, 2)): 0.8486,  # Wang et al. 2023, arXiv:2302.04638, WRN-70-16
}


_EXACT = Fraction(0)


@dataclass(frozen=True, slots=True)
class BestKnown:
    """The best published robust accuracy on a data set under a threat model, a fraction of 1."""

    dataset: str
    norm: str
    eps: Fraction
    accuracy: float


FAILURES = Criterion("failures", kind="doubt", remedy="a repair of the attacks or the model, so that every row has an outcome")
CONTRADICTION = Criterion(
    "contradicted certificates",
    kind="doubt",
    role="unstable",
    remedy="a report of the contradiction, which is an error in kwbench",
)
CONSTANT = Criterion("constant", kind="doubt", role="constant")
RANDOM_ANSWERS = Criterion(
    "random answers", kind="doubt", role="unstable", remedy="a model that answers the same image alike, or more draws of it"
)
SMALL_SAMPLE = Criterion("small sample", kind="doubt", remedy="more images, which tell chance from gradients that mislead")
SINGLE_STEP = Criterion("single step on record", kind="masking")
ESCALATION = Criterion(
    "escalation", kind="doubt", role="budget", remedy="a larger budget: doubling it still breaks more samples"
)
REACH = Criterion("reach", kind="masking")
BEST = Criterion(
    "best known", kind="doubt", remedy="an attack designed for this model, or a reproduction of its robustness by others"
)
TWIN = Criterion(
    "twin", kind="doubt", remedy="an attack designed for this model, or a reason why it is more robust than its twin"
)


@dataclass(frozen=True, slots=True)
class Record:
    """The recorded results of one evaluation, as the checks read them.

    Attributes:
        summary: the numbers of the evaluation.
        outcomes: outcomes by label of the attack, then by hash of the sample. The clean images have the label `CLEAN`.
        others: evaluations of other models, at least those of the ReLU twin (`twin_of`).
        groups: group of each attack by its label; None for an attack that does not belong to exactly one group.
    """

    summary: Summary
    outcomes: Mapping[str, Mapping[str, Outcome]]
    others: Sequence[Summary]
    groups: Mapping[str, Group | None]

    def labels_of(self, group: Group) -> list[str]:
        """Return the labels of the attacks of a group."""
        return [label for label, other in self.groups.items() if other == group]

    def labels_with_steps(self, least: int, most: float = float("inf")) -> list[str]:
        """Return the labels of the attacks on exact gradients that take at least `least` and at most `most` steps."""
        exact = self.labels_of("exact")
        return [
            attack.name for attack in self.summary.attacks if attack.name in exact and least <= steps_of(attack.spec) <= most
        ]


def examine_record(
    summary: Summary,
    outcomes: Mapping[str, Sequence[Outcome]],
    others: Sequence[Summary] = (),
    *,
    relaxes: bool = True,
) -> list[Finding]:
    """Return the findings of all checks of the record.

    Args:
        summary: the numbers of the evaluation.
        outcomes: outcomes by label of the attack. The clean images have the label `CLEAN`.
        others: evaluations of other models, at least those of the ReLU twin (`twin_of`).
        relaxes: false for a model without operations to relax, whose relaxed gradients are exact.
    """
    rows = {label: {outcome.sample: outcome for outcome in run} for label, run in outcomes.items()}
    groups = {attack.name: group_of(attack.spec, relaxes=relaxes) for attack in summary.attacks}
    record = Record(summary, rows, others, groups)
    return [finding for check in RECORD_CHECKS.values() for finding in check.examine(record)]


def rows_have_outcomes(record: Record) -> list[Finding]:
    """Count outcomes with status `INVALID` or `ERROR`."""
    runs = record.outcomes.values()
    failed = [outcome.sample for run in runs for outcome in run.values() if outcome.status in (Status.INVALID, Status.ERROR)]
    share = len(failed) / max(1, sum(len(run) for run in runs))
    statement = f"{len(failed)} rows are invalid or errors: attacks that failed for a technical reason"
    return [FAILURES.finding(share, 0.0, statement, fires=bool(failed), samples=tuple(dict.fromkeys(failed)))]


def answers_repeat(record: Record) -> list[Finding]:
    """Count adversarial images of a deterministic model whose answers differed when the judge asked again."""
    if record.summary.stochastic:
        return []
    runs = record.outcomes.values()
    random = {outcome.sample for run in runs for outcome in run.values() if outcome.note.startswith(ASKED_AGAIN)}
    if not random:
        return []
    share = len(random) / record.summary.n
    statement = f"asked again, the model answers adversarial images of {len(random)} samples otherwise than the first time"
    return [RANDOM_ANSWERS.finding(share, 0.0, statement, samples=tuple(sorted(random)))]


def no_certified_sample_is_broken(record: Record) -> list[Finding]:
    """Check that no attack of the evaluation contradicts a certificate on record; see `kwbench.record.contradictions`.

    Either is then wrong: there is an error in kwbench or in the record, or the model does not always answer alike.
    """
    summary = record.summary
    conflict = "certificates and attacks contradict each other"
    if summary.certified_values is not None:
        runs = {label: run.values() for label, run in record.outcomes.items()}
        places, in_the_mean = below_gaussian_bounds(summary, runs)
        rare = {position for _, position in places}
        samples = {outcome.sample for run in runs.values() for outcome in run if outcome.index in rare}
        statement = (
            f"right answers are rarer than the Gaussian bounds allow on {len(rare)} of {summary.n} samples, and "
            f"{'rarer' if in_the_mean else 'not rarer'} in the mean"
        )
        contradicted = bool(rare) or in_the_mean
        statement += f"; {conflict}" if contradicted else ""
        share = len(rare) / summary.n
        return [CONTRADICTION.finding(share, 0.0, statement, fires=contradicted, samples=tuple(sorted(samples)))]
    if summary.certified is None:
        return []
    positions = set(summary.index[summary.certified].tolist())
    broken = {
        outcome.sample
        for run in record.outcomes.values()
        for outcome in run.values()
        if outcome.index in positions and outcome.status in (Status.BROKEN, Status.WRONG)
    }
    statement = f"attacks broke {len(broken)} of {len(positions)} certified samples; {conflict}"
    return [CONTRADICTION.finding(len(broken) / len(positions), 0.0, statement, samples=tuple(sorted(broken)))]


def few_gains_are_not_chance(record: Record) -> list[Finding]:
    """Check on few samples that attacks without the model's own gradients gain nothing, since few gains look like chance."""
    exact = record.labels_of("exact")
    others = [label for group in ("gradient-free", "transfer") for label in record.labels_of(group)]
    if not exact or not others or record.summary.n >= SMALL:
        return []
    drops = _drops(record, [CLEAN, *exact], others, tried=exact)
    share = sum(drops.values()) / record.summary.n
    statement = (
        f"attacks without the model's own gradients break {100 * share:.1f} % of only {record.summary.n} samples that exact "
        "gradients did not"
    )
    return [SMALL_SAMPLE.finding(share, GAP, statement, samples=_broken(drops))]


def predictions_differ(record: Record) -> list[Finding]:
    """Check that the model does not predict the same class for all images."""
    clean = record.outcomes.get(CLEAN, {}).values()
    predicted = {outcome.clean_prediction for outcome in clean}
    labels = {outcome.label for outcome in clean}
    if len(labels) < 2:
        return []
    statement = f"images of {len(labels)} classes get {len(predicted)} different prediction{'s' if len(predicted) > 1 else ''}"
    return [CONSTANT.finding(float(len(predicted)), 1.0, statement, fires=len(predicted) == 1)]


@dataclass(frozen=True, slots=True)
class GroupCheck:
    """Check whether a group of attacks breaks samples that attacks on exact gradients tried and did not break.

    `subject` names the attacks of the group in the statement of the finding.
    """

    criterion: Criterion
    group: Group
    subject: str

    def __call__(self, record: Record) -> list[Finding]:
        """Return the finding; none if the record has no attack of the group, or none on exact gradients."""
        exact, others = record.labels_of("exact"), record.labels_of(self.group)
        if not exact or not others:
            return []
        return [_gap(record, self.criterion, f"{self.subject} ({', '.join(others)}) break", others, "exact gradients", exact)]

    @classmethod
    def of(cls, group: Group, subject: str) -> Check[Record]:
        """Return the check of a group as an entry for RECORD_CHECKS."""
        criterion = Criterion(group, kind="masking")
        return Check(group, cls(criterion, group, subject), (criterion,))


def one_step_is_weaker_than_many(record: Record) -> list[Finding]:
    """Check whether a single step on exact gradients breaks samples that many steps do not break."""
    single, many = record.labels_with_steps(1, 1), record.labels_with_steps(MANY_STEPS)
    if not single or not many:
        return []
    return [_gap(record, SINGLE_STEP, f"a single step ({', '.join(single)}) breaks", single, "many steps", many)]


def escalation_has_ended(record: Record) -> list[Finding]:
    """Measure the largest loss of robust accuracy by the last doubling of an attack's budget."""
    labels = [attack.name for attack in record.summary.attacks]
    last: dict[str, str] = {}
    for label in labels:
        base, times, factor = label.rpartition(" x")
        if times and factor.isdigit() and base in labels:
            last[base] = label
    if not last:
        return []
    gains = {label: _drops(record, [CLEAN, *labels[: labels.index(label)]], [label], tried=[CLEAN]) for label in last.values()}
    most = max(gains, key=lambda label: sum(gains[label].values()))
    gain = sum(gains[most].values()) / record.summary.n
    statement = f"{most}, the last doubling of a budget, took {100 * gain:.1f} points of robust accuracy"
    return [ESCALATION.finding(gain, GAIN, statement, samples=_broken(gains[most]))]


def steps_cross_the_ball(record: Record) -> list[Finding]:
    """Check that each attack can cross the ball: its steps times its step size are at least eps.

    If the evaluation has a protocol, only the attacks of the protocol are checked.
    """
    summary = record.summary
    reaches = {}
    for attack in summary.attacks:
        if summary.protocol and attack.name not in summary.protocol:
            continue
        parameters = parameters_of(attack.spec)
        step_size = parameters.get("step_size")
        if step_size is None and parameters.get("relative_step_size") is not None:
            step_size = parameters["relative_step_size"] * summary.threat.radius
        if step_size is not None and parameters.get("steps") is not None:
            reaches[attack.name] = float(parameters["steps"]) * float(step_size) / summary.threat.radius
    if not reaches:
        return []
    shortest = min(reaches, key=lambda label: reaches[label])
    reach = reaches[shortest]
    statement = f"all steps of {shortest} together are {reach:.3g} eps long; below 1 it cannot cross the ball"
    return [REACH.finding(reach, 1.0, statement, fires=reach < 1)]


def accuracy_is_at_most_the_best_known(record: Record) -> list[Finding]:
    """Check that the robust accuracy is not above the best published one for the data set and threat model."""
    summary = record.summary
    if summary.a_rob is None:
        return []
    known = best_known(summary.dataset, summary.model, summary.threat)
    if known is None:
        return []
    value = summary.a_rob.value
    statement = (
        f"the robust accuracy is {100 * value:.1f} %; the best that is believed on {known.dataset} at {known.norm} {known.eps} "
        f"is {100 * known.accuracy:.2f} % (RobustBench)"
    )
    return [BEST.finding(value, known.accuracy, statement, fires=summary.a_rob.low > known.accuracy)]


def best_known(dataset: str, model: str, threat: ThreatModel, tolerance: Fraction = _EXACT) -> BestKnown | None:
    """Return the best published robust accuracy that bounds a model's; None if none is known.

    The best value for a smaller ball also bounds the robust accuracy in a larger one, which contains it. With a `tolerance`,
    the published radius may be larger by that share of the threat model's, and the value is then no bound.
    """
    for (name, norm, eps), accuracy in BEST_KNOWN.items():
        same = dataset.lower().startswith(name) or model.startswith(f"{name}/")
        if same and norm == threat.norm and threat.eps * (1 + tolerance) >= eps:
            return BestKnown(name, norm, eps, accuracy)
    return None


def lead_over_the_twin_is_small(record: Record) -> list[Finding]:
    """Compare the robust accuracy with that of the same network with ReLU, on the same samples under the same suite."""
    summary = record.summary
    name = twin_of(summary.model)
    values = summary.robust_values
    if name is None or values is None:
        return []
    key = comparison_key(summary.evaluation)
    twins = [
        other
        for other in record.others
        if other.model == name
        and other.robust_values is not None
        and (other.dataset, other.n, other.threat) == (summary.dataset, summary.n, summary.threat)
        and comparison_key(other.evaluation).data == key.data
        and comparison_key(other.evaluation).suite == key.suite
    ]
    if not twins:
        return []
    newest = max(twins, key=lambda other: other.evaluation.recency)
    assert newest.robust_values is not None
    lead = difference_interval(np.asarray(values) - np.asarray(newest.robust_values), level=0.98)
    statement = f"the robust accuracy differs by {100 * lead.value:+.1f} points from {name}, the same network with ReLU"
    return [TWIN.finding(lead.value, TWIN_LEAD, statement, fires=lead.low > TWIN_LEAD)]


def twin_of(model: str) -> str | None:
    """Return the name of the same network with ReLU; None if the name contains no k-WTA or LWTA activation."""
    name = _ACTIVATION.sub("relu", model, count=1)
    return None if name == model else name


# In the order in which their findings are recorded.
RECORD_CHECKS: dict[str, Check[Record]] = {
    check.name: check
    for check in (
        Check("failures", rows_have_outcomes, (FAILURES,)),
        Check("constant", predictions_differ, (CONSTANT,)),
        GroupCheck.of("gradient-free", "gradient-free attacks"),
        GroupCheck.of("softened", "softened gradients"),
        GroupCheck.of("transfer", "adversarial examples of another model"),
        Check("small sample", few_gains_are_not_chance, (SMALL_SAMPLE,)),
        Check("contradicted certificates", no_certified_sample_is_broken, (CONTRADICTION,)),
        Check("random answers", answers_repeat, (RANDOM_ANSWERS,)),
        Check("single step on record", one_step_is_weaker_than_many, (SINGLE_STEP,)),
        Check("escalation", escalation_has_ended, (ESCALATION,)),
        Check("reach", steps_cross_the_ball, (REACH,)),
        Check("best known", accuracy_is_at_most_the_best_known, (BEST,)),
        Check("twin", lead_over_the_twin_is_small, (TWIN,)),
    )
}


def _gap(
    record: Record, criterion: Criterion, subject: str, labels: Sequence[str], than: str, reference: Sequence[str]
) -> Finding:
    """Return the finding on the share of samples that the attacks `labels` break and those of `reference` tried and did not."""
    drops = _drops(record, [CLEAN, *reference], labels, tried=reference)
    total = sum(drops.values())
    share = total / record.summary.n
    statement = (
        f"{subject} {100 * share:.1f} % of the samples that {than} ({', '.join(reference)}) were tried on and did not break"
    )
    return criterion.finding(share, GAP, statement, fires=share > GAP and total >= FEWEST, samples=_broken(drops))


def _broken(drops: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(sample for sample, drop in drops.items() if drop > 0.5)


def _drops(record: Record, first: Sequence[str], second: Sequence[str], *, tried: Sequence[str]) -> dict[str, float]:
    """Return how much the attacks `second` lower the value of a sample below its value after the attacks `first`.

    The result has an entry, by hash, for each sample that at least one attack of `tried` ran on and whose value changes.
    """
    rows, stochastic = record.outcomes, record.summary.stochastic
    drops = {}
    for sample in sorted({sample for label in tried for sample in rows.get(label, ())}):
        before = _value([rows[label][sample] for label in first if sample in rows.get(label, ())], stochastic)
        after = _value([rows[label][sample] for label in (*first, *second) if sample in rows.get(label, ())], stochastic)
        if before is not None and after is not None and before != after:
            drops[sample] = before - after
    return drops


def _value(candidates: Sequence[Outcome], stochastic: bool) -> float | None:
    """Return the value of a sample after the attacks that proposed these candidates; None if no candidate has a result.

    For a deterministic model it is 1 if the prediction is correct for all candidates, otherwise 0. For a stochastic model it is
    the share of correct fresh draws of one candidate, the one with the lowest share of correct selection draws.
    """
    if not stochastic:
        statuses = {candidate.status for candidate in candidates}
        return 0.0 if statuses & {Status.BROKEN, Status.WRONG} else 1.0 if Status.HELD in statuses else None
    scored = [candidate for candidate in candidates if candidate.fresh_draws and candidate.selection_draws]
    if not scored:
        return None
    chosen = min(scored, key=lambda candidate: candidate.selection_correct / candidate.selection_draws)
    return chosen.fresh_correct / chosen.fresh_draws
