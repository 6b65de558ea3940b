"""What the record of an evaluation says about how far it can be believed; pure, and without torch.

Attacks are grouped by what they know: the model's own gradients, softened ones, none at all, or another model's. Where a group
breaks what exact gradients saw and did not break, exact gradients are masked (Athalye et al. 2018, arXiv:1802.00420; Carlini
et al. 2019, arXiv:1902.06705).
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from kwbench.finding import Finding
from kwbench.outcome import CLEAN, Outcome, Status
from kwbench.record.comparability import comparison_key
from kwbench.record.evaluation import AttackSpec
from kwbench.record.summary import Summary
from kwbench.statistics import difference_interval

# On sound models other means break what strong gradients did not in up to 1 % of the samples: they start elsewhere.
GAP = 0.02
# Fewer samples than these are chance.
FEWEST = 3
# Points of robust accuracy that the last doubling of a budget may bring.
GAIN = 0.01
# A model may be better than its ReLU twin, but not by so much without a reason.
TWIN = 0.05

# The best robust accuracies that are believed, by data set, norm and eps: RobustBench (arXiv:2010.09670, March 2025).
BEST_KNOWN: dict[tuple[str, str, Fraction], float] = {
    ("cifar10", "linf", Fraction(8, 255)): 0.7371,  # Bartoldson et al. 2024, arXiv:2404.09349, WRN-94-16
    ("cifar10", "l2", Fraction(1, 2)): 0.8486,  # Wang et al. 2023, arXiv:2302.04638, WRN-70-16
}

_FREE = {"square", "rays", "gaussian-noise", "random-sign"}
# Gradient attacks that take no estimator, or the exact one where they are not told otherwise.
_GRADIENT = {"fgsm", "pgd", "apgd", "mim", "deepfool", "cw"}
_GROUPS = {"exact": "exact", "eot": "exact", "smooth": "softened", "relaxed": "softened", "es": "gradient-free"}
_ACTIVATION = re.compile(r"(?:kwta|slwta|lwta)[0-9.]*")


def examine_record(
    standing: Summary,
    outcomes: Mapping[str, Sequence[Outcome]],
    others: Sequence[Summary] = (),
    *,
    relaxes: bool = True,
) -> list[Finding]:
    """Every check of the record.

    `outcomes` are those of each attack by label, the clean images included; `others` are evaluations of other models, those
    of the ReLU twin (`twin_of`) at least. `relaxes` is false for a model without operations to relax: its relaxed gradients
    are exact.
    """
    rows = {label: {each.sample: each for each in found} for label, found in outcomes.items()}
    found = [_failures(standing, rows), *_constant(rows)]
    groups = {attack.name: group_of(attack.spec, relaxes=relaxes) for attack in standing.attacks}
    exact = [label for label, group in groups.items() if group == "exact"]
    for group, words in (
        ("gradient-free", "attacks without gradients"),
        ("softened", "softened gradients"),
        ("transfer", "images made against another model"),
    ):
        if exact and (labels := [label for label, each in groups.items() if each == group]):
            found.append(_gap(standing, rows, group, labels, exact, f"{words} ({', '.join(labels)}) break", "exact gradients"))
    single = [label for label in exact if _steps(_spec(standing, label)) == 1]
    many = [label for label in exact if _steps(_spec(standing, label)) >= 10]
    if single and many:
        words = f"a single step ({', '.join(single)}) breaks"
        found.append(_gap(standing, rows, "single step on record", single, many, words, "many steps"))
    found += _escalations(standing, rows)
    found += _reach(standing)
    found += _best_known(standing)
    found += _twin(standing, others)
    return found


def group_of(spec: AttackSpec, *, relaxes: bool = True) -> str | None:
    """`exact`, `softened`, `gradient-free` or `transfer`; None for what is a mixture, does nothing or cannot be told."""
    name, parameters = _name(spec), _parameters(spec)
    if name in _FREE:
        return "gradient-free"
    if name == "transfer":
        return "transfer"
    if name == "autoattack":
        # The standard version holds Square.
        return "exact" if parameters.get("version") == "rand" else None
    if name == "local-search":
        # Its climbs follow softened gradients, its flips none.
        return "softened"
    if name not in _GRADIENT:
        return None
    gradient = parameters.get("gradient")
    kind = str(gradient.get("kind", "exact")) if isinstance(gradient, Mapping) else "exact"
    return "exact" if kind == "relaxed" and not relaxes else _GROUPS.get(kind)


def twin_of(model: str) -> str | None:
    """The name of the same network with ReLU; None for a name that holds no other activation."""
    name = _ACTIVATION.sub("relu", model, count=1)
    return None if name == model else name


_Rows = Mapping[str, Mapping[str, Outcome]]


def _failures(standing: Summary, rows: _Rows) -> Finding:
    bad = [each.sample for found in rows.values() for each in found.values() if each.status in (Status.INVALID, Status.ERROR)]
    share = len(bad) / max(1, sum(len(found) for found in rows.values()))
    statement = f"{len(bad)} rows are invalid or errors: attacks that failed for a technical reason"
    return Finding("failures", round(share, 6), 0.0, bool(bad), statement, tuple(dict.fromkeys(bad)), "doubt")


def _constant(rows: _Rows) -> list[Finding]:
    """Whether the model says the same of every image."""
    clean = rows.get(CLEAN, {}).values()
    answers, labels = {each.clean_prediction for each in clean}, {each.label for each in clean}
    if len(labels) < 2:
        return []
    statement = f"the images of {len(labels)} classes get {len(answers)} different answer{'s' if len(answers) > 1 else ''}"
    return [Finding("constant", float(len(answers)), 1.0, len(answers) == 1, statement, (), "doubt")]


def _gap(
    standing: Summary, rows: _Rows, check: str, labels: Sequence[str], first: Sequence[str], words: str, than: str
) -> Finding:
    drops = _drops(rows, [CLEAN, *first], labels, seen_by=first, stochastic=standing.stochastic)
    total = sum(drops.values())
    share = total / standing.n
    concerned = tuple(sample for sample, drop in drops.items() if drop > 0.5)
    statement = f"{words} {100 * share:.1f} % of the samples that {than} ({', '.join(first)}) met and did not break"
    return Finding(check, round(share, 6), GAP, share > GAP and total >= FEWEST, statement, concerned, "masking")


def _escalations(standing: Summary, rows: _Rows) -> list[Finding]:
    """The gain of the last run of every attack whose budget was doubled."""
    labels = [attack.name for attack in standing.attacks]
    last: dict[str, str] = {}
    for label in labels:
        base, times, factor = label.rpartition(" x")
        if times and factor.isdigit() and base in labels:
            last[base] = label
    if not last:
        return []
    gains = {}
    for label in last.values():
        before = labels[: labels.index(label)]
        gains[label] = _drops(rows, [CLEAN, *before], [label], seen_by=[CLEAN], stochastic=standing.stochastic)
    most = max(gains, key=lambda label: sum(gains[label].values()))
    gain = sum(gains[most].values()) / standing.n
    statement = f"{most}, a last doubling of a budget, took {100 * gain:.1f} points of robust accuracy"
    concerned = tuple(sample for sample, drop in gains[most].items() if drop > 0.5)
    return [Finding("escalation", round(gain, 6), GAIN, gain > GAIN, statement, concerned, "doubt")]


def _drops(
    rows: _Rows, first: Sequence[str], second: Sequence[str], *, seen_by: Sequence[str], stochastic: bool
) -> dict[str, float]:
    """By how much the second group of attacks lowers the value of each sample that one of `seen_by` was tried on."""
    seen = {sample for label in seen_by for sample in rows.get(label, ())}
    drops = {}
    for sample in sorted(seen):
        before = _value([rows[label][sample] for label in first if sample in rows.get(label, ())], stochastic)
        after = _value([rows[label][sample] for label in (*first, *second) if sample in rows.get(label, ())], stochastic)
        if before is not None and after is not None and before != after:
            drops[sample] = before - after
    return drops


def _value(candidates: Sequence[Outcome], stochastic: bool) -> float | None:
    """1 or 0, right or not under all of them; or the fresh share of the candidate that the selection draws choose."""
    if not stochastic:
        words = {each.status for each in candidates}
        return 0.0 if words & {Status.BROKEN, Status.WRONG} else 1.0 if Status.HELD in words else None
    scored = [each for each in candidates if each.fresh_draws and each.selection_draws]
    if not scored:
        return None
    chosen = min(scored, key=lambda each: each.selection_correct / each.selection_draws)
    return chosen.fresh_correct / chosen.fresh_draws


def _reach(standing: Summary) -> list[Finding]:
    """Can the attacks of the protocol, or else all, cross the ball: steps times step_size against eps?"""
    reaches = {}
    for attack in standing.attacks:
        if standing.protocol and attack.name not in standing.protocol:
            continue
        parameters = _parameters(attack.spec)
        step_size = parameters.get("step_size")
        if step_size is None and parameters.get("relative_step_size") is not None:
            step_size = parameters["relative_step_size"] * standing.threat.radius
        if step_size is not None and parameters.get("steps") is not None:
            reaches[attack.name] = float(parameters["steps"]) * float(step_size) / standing.threat.radius
    if not reaches:
        return []
    shortest = min(reaches, key=lambda label: reaches[label])
    reach = reaches[shortest]
    statement = f"all steps of {shortest} together are {reach:.3g} eps long; below 1 it cannot cross the ball"
    return [Finding("reach", round(reach, 6), 1.0, reach < 1, statement, (), "masking")]


def _best_known(standing: Summary) -> list[Finding]:
    if standing.a_rob is None:
        return []
    for (dataset, norm, eps), best in BEST_KNOWN.items():
        same = standing.dataset.lower().startswith(dataset) or standing.model.startswith(f"{dataset}/")
        # What stands in a larger ball stands in the smaller one.
        if same and norm == standing.threat.norm and standing.threat.eps >= eps:
            value = standing.a_rob.value
            statement = (
                f"the robust accuracy is {100 * value:.1f} %; the best that is believed on {dataset} at {norm} {eps} "
                f"is {100 * best:.2f} % (RobustBench)"
            )
            return [Finding("best known", round(value, 6), best, standing.a_rob.low > best, statement, (), "doubt")]
    return []


def _twin(standing: Summary, others: Sequence[Summary]) -> list[Finding]:
    """How far the model stands above the one of the same name with ReLU, on the same samples under the same suite."""
    name = twin_of(standing.model)
    mine = standing.robust_values
    if name is None or mine is None:
        return []
    key = comparison_key(standing.evaluation)
    twins = [
        other
        for other in others
        if other.model == name
        and other.robust_values is not None
        and (other.dataset, other.n, other.threat) == (standing.dataset, standing.n, standing.threat)
        and comparison_key(other.evaluation).data == key.data
        and comparison_key(other.evaluation).suite == key.suite
    ]
    if not twins:
        return []
    twin = max(twins, key=lambda other: (other.evaluation.asked, other.evaluation.id)).robust_values
    assert twin is not None
    lead = difference_interval(np.asarray(mine) - np.asarray(twin), level=0.98)
    statement = f"the robust accuracy is {100 * lead.value:+.1f} points from that of {name}, the same network with ReLU"
    return [Finding("twin", round(lead.value, 6), TWIN, lead.low > TWIN, statement, (), "doubt")]


def _spec(standing: Summary, label: str) -> AttackSpec:
    return next(attack.spec for attack in standing.attacks if attack.name == label)


def _steps(spec: AttackSpec) -> int:
    """How many steps an attack makes; 0 where it does not say."""
    return 1 if _name(spec) == "fgsm" else int(_parameters(spec).get("steps") or 0)


def _name(spec: AttackSpec) -> str:
    return str(spec.spec.get("attack", spec.label))


def _parameters(spec: AttackSpec) -> Mapping[str, Any]:
    parameters = spec.spec.get("parameters", {})
    return parameters if isinstance(parameters, Mapping) else {}
