"""The verdict on a model and a protocol: is the accuracy under the protocol credible, and is the robust accuracy? No torch.

Passing is evidence, never proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kwbench.finding import Criterion, Finding
from kwbench.record.certificates import bounds_text
from kwbench.record.summary import Summary
from kwbench.statistics import Interval, accuracy_of_values, difference_interval
from kwbench.verdict.record_checks import FAILURES

Conclusion = Literal["degenerate", "overestimated", "confirmed", "inconclusive"]

CAVEAT = "Passing the checks is evidence, never proof."

# The accuracy by which a protocol may overestimate.
OVERESTIMATE = 0.01
# A two-sided level of 98 %: chance passes the lower end once in a hundred times.
LEVEL = 0.98
# A robust accuracy of at most this cannot be much too high.
NEGLIGIBLE = 0.005
# A model is at chance if its accuracy exceeds chance by at most this share of what a perfect model would.
NEAR_CHANCE = 0.1

_AT_CHANCE = Criterion("degenerate", kind="note")
_PERHAPS_AT_CHANCE = Criterion("chance", kind="doubt", remedy="more images")
_PROVED = Criterion("certificates", kind="note")
_LITTLE_LEFT = Criterion("robust accuracy", kind="note")
_HIDDEN_GRADIENTS = Criterion(
    "hidden gradients", kind="doubt", remedy="an attack designed for this model, or other proof that nothing is hidden"
)
_BUDGET_NOT_TRIED = Criterion(
    "twice the budget", kind="doubt", role="budget", remedy="`kwbench diagnose`, which tries twice the budget"
)
_UNFINISHED = Criterion("complete search", kind="note")
_NO_DOUBT = Criterion("no doubt", kind="note")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A conclusion about a model and a protocol, with its reasons.

    Attributes:
        conclusion: `overestimated`: the accuracy under the protocol is too high. `degenerate`: the model is constant or at
            chance. `confirmed`: the robust accuracy is credible. `inconclusive`: it may be too high.
        protocol: the name of the protocol.
        overestimate: the accuracy under the protocol minus the robust accuracy, on the same samples, with its 98 % interval;
            None without a protocol or a robust accuracy.
        reasons: the findings that led to the conclusion.
        would_settle: what would make an inconclusive verdict conclusive; empty for the others.
        bounds: `exact` if each sample is either broken or certified, `bracketed` if only some are; None without certificates.
        between: the robust accuracy between its bounds, in percent; empty without certificates.
    """

    conclusion: Conclusion
    protocol: str
    overestimate: Interval | None
    reasons: tuple[Finding, ...]
    would_settle: str = ""
    bounds: Literal["exact", "bracketed"] | None = None
    between: str = ""

    def sentence(self) -> str:
        """Return the verdict as one sentence, and another one on its bounds, if there are any."""
        proved = f" {self.between[:1].upper()}{self.between[1:]} ({self.bounds})." if self.bounds else ""
        if self.conclusion == "overestimated":
            assert self.overestimate is not None
            gap = self.overestimate
            return (
                f"Overestimated: the accuracy under {self.protocol} is {100 * gap.value:.1f} points higher than under the "
                f"strongest attacks [{100 * gap.low:.1f}, {100 * gap.high:.1f}].{proved}"
            )
        because = "; ".join(reason.statement for reason in self.reasons)
        settled = f" What would settle it: {self.would_settle}." if self.conclusion == "inconclusive" else ""
        return f"{self.conclusion.capitalize()}: {because}.{settled}{proved}"


def verdict(summary: Summary, findings: Sequence[Finding], protocol: tuple[str, ArrayLike] | None = None) -> Verdict:
    """Decide from the numbers of a strong evaluation and the findings of the checks. The first rule that applies decides.

    1. Without a robust accuracy: inconclusive.
    2. A constant model, or one at chance: degenerate.
    3. A model that does not always answer an image alike: inconclusive, whatever else holds.
    4. The protocol leaves more than OVERESTIMATE above the robust accuracy: overestimated.
    5. Each sample is broken or certified: confirmed, since nothing is left to doubt.
    6. A negligible robust accuracy: confirmed; unless the images are too few to tell the model from chance, or operations
       could not be seen and the protocol's accuracy is not negligible, so that nobody understands why the attacks succeed.
    7. Any doubt that fires or could not be measured, gradients that mislead, or no attempt at a larger budget: inconclusive.
    8. Otherwise: confirmed.

    Args:
        summary: the numbers of the evaluation.
        findings: the findings of all checks.
        protocol: the name of another protocol and the accuracy of each sample under it, in the order of `summary.index`; by
            default the protocol of the suite.
    """
    decided = _decide(summary, findings, protocol)
    return replace(decided, bounds=summary.bounds, between=bounds_text(summary) if summary.bounds else "")


def _decide(summary: Summary, findings: Sequence[Finding], protocol: tuple[str, ArrayLike] | None) -> Verdict:
    """Return the verdict without its bounds; see `verdict`."""
    name, values = protocol or (", ".join(summary.protocol), summary.protocol_values)
    robust = summary.robust_values
    if summary.a_rob is None or robust is None:
        failure = replace(FAILURES.not_measured(f"there is no robust accuracy: {'; '.join(summary.missing)}"), fires=True)
        return Verdict("inconclusive", name, None, (failure,), FAILURES.remedy)
    # The suite's own protocol is among the attacks behind the robust accuracy, so that on deterministic models no gap is
    # negative.
    nested = protocol is None and not summary.stochastic
    overestimate = None if values is None else _overestimate(np.asarray(values, dtype=float) - robust, nested=nested)
    masking = [finding for finding in findings if finding.fires and finding.kind == "masking"]
    doubts = [finding for finding in findings if finding.kind == "doubt" and (finding.fires or finding.figure is None)]

    if (degenerate := _degenerate(summary, findings)) is not None:
        return Verdict("degenerate", name, overestimate, (degenerate,))
    unstable = [doubt for doubt in doubts if doubt.role == "unstable" and doubt.fires]
    perhaps_at_chance = _perhaps_at_chance(summary)
    doubts += perhaps_at_chance
    if overestimate is not None and overestimate.low > OVERESTIMATE and not unstable:
        return Verdict("overestimated", name, overestimate, (*masking, *doubts))
    unseen = any(finding.role == "unseen" and finding.fires for finding in findings)
    unexplained = unseen and (values is None or np.asarray(values, dtype=float).mean() > NEGLIGIBLE)
    negligible = summary.a_rob.value <= NEGLIGIBLE and not perhaps_at_chance and not unexplained
    if (summary.bounds == "exact" or negligible) and not unstable:
        return Verdict("confirmed", name, overestimate, (_beyond_doubt(summary, summary.a_rob.value),))
    doubts += _hidden_gradients(masking, summary.a_rob.value, overestimate)
    budget = [finding for finding in findings if finding.role == "budget"]
    doubts = unstable or doubts
    would_settle = _would_settle(doubts)
    if not doubts and not budget:
        doubts = [_BUDGET_NOT_TRIED.not_measured("twice the budget was not tried")]
        would_settle = _BUDGET_NOT_TRIED.remedy
    if doubts:
        return Verdict("inconclusive", name, overestimate, tuple(doubts), would_settle)
    return Verdict("confirmed", name, overestimate, (*budget, *_unfinished_search(summary), _no_doubt(findings)))


def robustness_is_negligible(summary: Summary) -> bool:
    """Return whether both the accuracy under the suite's own protocol and the robust accuracy are negligible."""
    values = summary.protocol_values
    return summary.a_rob is not None and values is not None and max(summary.a_rob.value, float(values.mean())) <= NEGLIGIBLE


def verdict_on_record(summary: Summary) -> Verdict | None:
    """Return the verdict on an evaluation that has been diagnosed; None if it has not."""
    return verdict(summary, summary.findings) if summary.findings else None


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON values."""
    return {
        "check": finding.check,
        "kind": finding.kind,
        "fires": finding.fires,
        "figure": finding.figure,
        "threshold": finding.threshold,
        "statement": finding.statement,
        "samples": list(finding.samples),
    }


def verdict_json(verdict: Verdict | None) -> dict[str, Any] | None:
    """Return a verdict as JSON values, accuracies as fractions of 1; None (null) for no verdict."""
    if verdict is None:
        return None
    gap = verdict.overestimate
    return {
        "verdict": verdict.conclusion,
        "sentence": verdict.sentence(),
        "protocol": verdict.protocol,
        "overestimate": None if gap is None else {"value": gap.value, "low": gap.low, "high": gap.high},
        "reasons": [finding_json(reason) for reason in verdict.reasons],
        "would_settle": verdict.would_settle,
        "bounds": verdict.bounds,
        "caveat": CAVEAT,
    }


def _overestimate(gaps: NDArray[np.float64], *, nested: bool) -> Interval:
    return accuracy_of_values(gaps, LEVEL) if nested else difference_interval(gaps, LEVEL)


def _degenerate(summary: Summary, findings: Sequence[Finding]) -> Finding | None:
    """Return why the model is degenerate: it is constant, or its accuracy is at chance; None if it is not."""
    for finding in findings:
        if finding.role == "constant" and finding.fires:
            return finding
    chance = _chance(summary)
    if summary.a_std is None or chance is None or summary.a_std.low > chance:
        return None
    if summary.a_std.value <= chance:
        relation = f"is not above chance, {100 * chance:.1f} %"
    elif summary.a_std.high <= chance + NEAR_CHANCE * (1 - chance):
        relation = f"cannot be told from chance, {100 * chance:.1f} %, and is at most {100 * summary.a_std.high:.1f} %"
    else:
        return None
    statement = f"the clean accuracy, {100 * summary.a_std.value:.1f} %, {relation}"
    return _AT_CHANCE.finding(summary.a_std.value, chance, statement, fires=True)


def _perhaps_at_chance(summary: Summary) -> list[Finding]:
    """Return the doubt that the images are too few to tell a model that is not degenerate from chance, if they are."""
    chance = _chance(summary)
    if summary.a_std is None or chance is None or summary.a_std.low > chance:
        return []
    statement = (
        f"{summary.n} images are too few to tell the clean accuracy, {100 * summary.a_std.value:.1f} %, from chance, "
        f"{100 * chance:.1f} %"
    )
    return [_PERHAPS_AT_CHANCE.finding(summary.a_std.value, chance, statement, fires=True)]


def _chance(summary: Summary) -> float | None:
    """Return the accuracy of guessing; None if the record does not hold the number of classes."""
    classes = summary.evaluation.origin.get("classes")
    return 1 / classes if isinstance(classes, int) else None


def _beyond_doubt(summary: Summary, robust: float) -> Finding:
    """Return why a robust accuracy cannot be too high: it is proved, or there is little of it."""
    if summary.bounds == "exact":
        statement = f"each of {summary.n} samples is broken, wrong or certified, so that the robust accuracy is the true one"
        return _PROVED.finding(robust, 0.0, statement, fires=False)
    statement = f"the robust accuracy is {100 * robust:.1f} %, which cannot be much too high"
    return _LITTLE_LEFT.finding(robust, NEGLIGIBLE, statement, fires=False)


def _hidden_gradients(masking: Sequence[Finding], robust: float, overestimate: Interval | None) -> list[Finding]:
    """Return the doubt that gradients mislead while no gradient-free attack gained anything, if so.

    In thousands of dimensions a random search is too weak to count as evidence.
    """
    misleading = [finding.check for finding in masking if finding.role == "misleading"]
    if not misleading or robust <= OVERESTIMATE:
        return []
    gain = "" if overestimate is None else f": {100 * overestimate.value:.1f} points"
    statement = f"gradients mislead ({', '.join(misleading)}), and attacks that do not rely on them gained little{gain}"
    return [_HIDDEN_GRADIENTS.finding(robust, OVERESTIMATE, statement, fires=True)]


def _would_settle(doubts: Sequence[Finding]) -> str:
    """Return what would settle these doubts, each remedy once."""
    remedies = [
        f"the check {doubt.check!r}, carried out"
        if doubt.figure is None
        else doubt.remedy or f"an explanation of {doubt.check!r}"
        for doubt in doubts
    ]
    return "; ".join(dict.fromkeys(remedies))


def _unfinished_search(summary: Summary) -> list[Finding]:
    """Return on how many samples a complete search ended without an answer, if one ran and did."""
    ran = any(attack.spec.spec.get("attack") == "complete-search" for attack in summary.attacks)
    if not ran or summary.robust_values is None:
        return []
    standing = summary.robust_values > 0
    left = int(standing.sum()) if summary.certified is None else int((standing & ~summary.certified).sum())
    if not left:
        return []
    statement = f"a complete search ran out of effort on {left} of {summary.n} samples, which are neither broken nor certified"
    return [_UNFINISHED.finding(left / summary.n, 0.0, statement, fires=False)]


def _no_doubt(findings: Sequence[Finding]) -> Finding:
    count = sum(finding.kind == "doubt" for finding in findings)
    masking = [finding.check for finding in findings if finding.kind == "masking" and finding.fires]
    hidden = f", though the model hides its gradients from weaker attacks ({', '.join(masking)})" if masking else ""
    statement = (
        f"none of {count} checks casts doubt on the robust accuracy{hidden}; needles, such as "
        "triggers of a few pixels, were not searched for"
    )
    return _NO_DOUBT.finding(0.0, 0.0, statement, fires=False)
