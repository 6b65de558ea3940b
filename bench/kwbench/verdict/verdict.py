"""The verdict about a pair of model and protocol: can the protocol's number be believed, and can ours? Pure, without torch.

Passing is evidence, never proof.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from kwbench.finding import Finding
from kwbench.record.summary import Summary
from kwbench.statistics import Interval, accuracy_of_values, difference_interval

Conclusion = Literal["degenerate", "overestimated", "confirmed", "inconclusive"]

CAVEAT = "Passing the checks is evidence, never proof."

# Points by which a protocol may overestimate.
OVERESTIMATE = 0.01
# One-sided 99 %: an interval whose lower end is passed by chance once in a hundred.
LEVEL = 0.98
# Below this nothing can be much too high.
NEGLIGIBLE = 0.005

# A model is at chance if what it may have beyond it is less than this share of all that there is beyond it.
NEAR_CHANCE = 0.1

# Checks that tried twice the budget; without one of them nothing is confirmed.
_PROOFS = ("twice the budget", "escalation")

# Checks that say that gradients are no guide. Where nothing else was one either, no search has been one.
_MISLEADING = ("shattered gradients", "misleading gradients", "incoherent gradients", "averaged gradient noise", "plateaus")

_REMEDIES = {
    "twice the budget": "a larger budget: it still brings something",
    "escalation": "a larger budget: it still brings something",
    "chance": "more images",
    "failures": "mending the attacks or the model, so that every row has an answer",
    "state": "a model whose answer depends on the image alone",
    "unseen": "an attack that knows the operations that could not be seen, or a model that spells them so that they can",
    "best known": "an attack made for this model, or its reproduction by others",
    "twin": "an attack made for this model, or a reason for its lead over its twin",
    "above standard": "an evaluation in which attacked images do not fare better than the images themselves",
    "flat": "an estimator that sees a slope where none of ours does",
    "unreachable": "an estimator that leads an unbounded attack to success",
    "hidden gradients": "an attack made for this model, or another proof that nothing is hidden",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`conclusion` is about the pair of the model and the protocol of that name.

    `overestimate` is the accuracy that the protocol leaves less the robust accuracy, on the same samples, with its 98 %
    interval; None where there is no protocol. `reasons` are the findings that led to the verdict; `would_settle` says what
    would make an inconclusive one conclusive, and is empty otherwise.
    """

    conclusion: Conclusion
    protocol: str
    overestimate: Interval | None
    reasons: tuple[Finding, ...]
    would_settle: str = ""

    def sentence(self) -> str:
        """The verdict in one sentence."""
        if self.conclusion == "overestimated":
            assert self.overestimate is not None
            each = self.overestimate
            return (
                f"Overestimated: {self.protocol} leaves {100 * each.value:.1f} points more than the strongest attacks "
                f"[{100 * each.low:.1f}, {100 * each.high:.1f}]."
            )
        if self.conclusion == "confirmed":
            return f"Confirmed: {'; '.join(each.statement for each in self.reasons)}."
        if self.conclusion == "degenerate":
            return f"Degenerate: {'; '.join(each.statement for each in self.reasons)}."
        return f"Inconclusive: {'; '.join(each.statement for each in self.reasons)}. What would settle it: {self.would_settle}."


def verdict(standing: Summary, findings: Sequence[Finding], protocol: tuple[str, ArrayLike] | None = None) -> Verdict:
    """The verdict from the numbers of a strong evaluation and what the checks found.

    A constant model, or one at chance, is degenerate. One that too few images tell from chance is not confirmed, but its
    protocol may overestimate all the same.

    `protocol` is the name of another protocol and the values that it leaves, one a sample in the order of `standing.index`; by
    default the suite's own.
    """
    name, values = protocol or (", ".join(standing.protocol), standing.protocol_values)
    robust = standing.robust_values
    overestimate = None
    if values is not None and robust is not None:
        gaps = np.asarray(values, dtype=float) - robust
        # The suite's own protocol is part of what it is held against: on a deterministic model no gap can be negative.
        nested = protocol is None and not standing.stochastic
        overestimate = accuracy_of_values(gaps, LEVEL) if nested else difference_interval(gaps, LEVEL)
    masked = tuple(each for each in findings if each.fires and each.kind == "masking")
    doubts = tuple(each for each in findings if each.kind == "doubt" and (each.fires or each.figure is None))

    if standing.a_rob is None or robust is None:
        why = Finding("failures", None, 0.0, True, f"there is no robust accuracy: {'; '.join(standing.missing)}", (), "doubt")
        return Verdict("inconclusive", name, None, (why,), _REMEDIES["failures"])
    if (found := _degenerate(standing, findings)) is not None:
        return Verdict("degenerate", name, overestimate, (found,))
    if (uncertain := _perhaps_at_chance(standing)) is not None:
        doubts = (*doubts, uncertain)
    if overestimate is not None and overestimate.low > OVERESTIMATE:
        return Verdict("overestimated", name, overestimate, (*masked, *doubts))
    # Where operations could not be seen, how nothing came to be left is not understood, unless the protocol says so too.
    unseen = any(each.check == "unseen" and each.fires for each in findings)
    unexplained = unseen and (values is None or np.asarray(values, dtype=float).mean() > NEGLIGIBLE)
    if standing.a_rob.value <= NEGLIGIBLE and uncertain is None and not unexplained:
        left = f"{100 * standing.a_rob.value:.1f} % are left, which cannot be much too high"
        return Verdict(
            "confirmed", name, overestimate, (Finding("robust accuracy", standing.a_rob.value, NEGLIGIBLE, False, left),)
        )
    if (hidden := _hidden(masked, standing.a_rob.value, overestimate)) is not None:
        doubts = (*doubts, hidden)
    reasons, would_settle = _open_questions(findings, doubts)
    if reasons:
        return Verdict("inconclusive", name, overestimate, reasons, would_settle)
    shown = tuple(each for each in findings if each.check in _PROOFS)
    return Verdict("confirmed", name, overestimate, (*shown, _no_doubt(findings)))


def robustness_is_negligible(standing: Summary) -> bool:
    """Whether the suite's own protocol leaves next to nothing, and so do all attacks together."""
    values = standing.protocol_values
    return standing.a_rob is not None and values is not None and max(standing.a_rob.value, float(values.mean())) <= NEGLIGIBLE


def verdict_on_record(standing: Summary) -> Verdict | None:
    """The verdict on an evaluation that has been diagnosed; None if it has not."""
    return verdict(standing, standing.findings) if standing.findings else None


def finding_json(finding: Finding) -> dict[str, Any]:
    """A finding as JSON values."""
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
    """A verdict as JSON values, fractions of 1; None (null) for none."""
    if verdict is None:
        return None
    each = verdict.overestimate
    return {
        "verdict": verdict.conclusion,
        "sentence": verdict.sentence(),
        "protocol": verdict.protocol,
        "overestimate": None if each is None else {"value": each.value, "low": each.low, "high": each.high},
        "reasons": [finding_json(reason) for reason in verdict.reasons],
        "would_settle": verdict.would_settle,
        "caveat": CAVEAT,
    }


def _degenerate(standing: Summary, findings: Sequence[Finding]) -> Finding | None:
    for each in findings:
        if each.check == "constant" and each.fires:
            return each
    chance = _chance(standing)
    if standing.a_std is None or chance is None or standing.a_std.low > chance:
        return None
    if standing.a_std.value <= chance:
        which = f"is not above chance, {100 * chance:.1f} %"
    elif standing.a_std.high <= chance + NEAR_CHANCE * (1 - chance):
        which = f"cannot be told from chance, {100 * chance:.1f} %, and is at most {100 * standing.a_std.high:.1f} %"
    else:
        return None
    statement = f"the accuracy on the images themselves, {100 * standing.a_std.value:.1f} %, {which}"
    return Finding("degenerate", round(standing.a_std.value, 6), chance, True, statement)


def _hidden(masked: Sequence[Finding], robust: float, overestimate: Interval | None) -> Finding | None:
    """That gradients mislead, for models of which the attacks that go by something else have broken no more: those may be blind
    too, as function values are in thousands of dimensions."""
    misleading = [each.check for each in masked if each.check in _MISLEADING]
    if not misleading or robust <= OVERESTIMATE:
        return None
    gain = "" if overestimate is None else f", by {100 * overestimate.value:.1f} points"
    statement = f"gradients mislead ({', '.join(misleading)}), and no attack that goes by something else gained much{gain}"
    return Finding("hidden gradients", round(robust, 6), OVERESTIMATE, True, statement, (), "doubt")


def _perhaps_at_chance(standing: Summary) -> Finding | None:
    """For models that are not degenerate: that the images are too few to say so."""
    chance = _chance(standing)
    if standing.a_std is None or chance is None or standing.a_std.low > chance:
        return None
    statement = (
        f"{standing.n} images are too few to tell the accuracy on them, {100 * standing.a_std.value:.1f} %, "
        f"from chance, {100 * chance:.1f} %"
    )
    return Finding("chance", round(standing.a_std.value, 6), chance, True, statement, (), "doubt")


def _chance(standing: Summary) -> float | None:
    """The share of right guesses, where the record says how many classes there are."""
    classes = standing.evaluation.origin.get("classes")
    return 1 / classes if isinstance(classes, int) else None


def _open_questions(findings: Sequence[Finding], doubts: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], str]:
    """What stands against believing the robust accuracy, and what would settle it; nothing and nothing if all is well."""
    if not doubts and not any(each.check in _PROOFS for each in findings):
        why = Finding("twice the budget", None, OVERESTIMATE, False, "twice the budget was not tried", (), "doubt")
        return (why,), "`kwbench diagnose`, which tries twice the budget"
    remedies = dict.fromkeys(
        f"the check {each.check!r}, carried out"
        if each.figure is None
        else _REMEDIES.get(each.check, f"{each.check}, explained")
        for each in doubts
    )
    return doubts, "; ".join(remedies)


def _no_doubt(findings: Sequence[Finding]) -> Finding:
    checks = [each for each in findings if each.kind == "doubt"]
    masked = [each.check for each in findings if each.kind == "masking" and each.fires]
    hidden = f", though the model hides its gradients from weaker attacks ({', '.join(masked)})" if masked else ""
    return Finding(
        "no doubt", 0.0, 0.0, False, f"none of {len(checks)} checks casts doubt on the robust accuracy{hidden}", (), "note"
    )
