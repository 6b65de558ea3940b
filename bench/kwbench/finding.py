"""Checks and their findings: what a check is, what it measured, and what the verdict makes of it.

Checks of a model (`kwbench.checks`) and checks of a record (`kwbench.verdict.record_checks`) are both instances of `Check`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, TypeVar

Kind = Literal["doubt", "masking", "note"]
Role = Literal["", "budget", "misleading", "constant", "unstable", "unseen"]

# The roles of findings that were recorded before findings stored their role.
_ROLES_OF_EARLIER_VERSIONS: Mapping[str, Role] = {
    "twice the budget": "budget",
    "escalation": "budget",
    "shattered gradients": "misleading",
    "misleading gradients": "misleading",
    "incoherent gradients": "misleading",
    "averaged gradient noise": "misleading",
    "plateaus": "misleading",
    "constant": "constant",
    "state": "unstable",
    "unseen": "unseen",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure that a check measured on one evaluation.

    Attributes:
        check: the name of the criterion that the figure belongs to.
        figure: the measured value; None if it could not be measured, and `statement` says why.
        threshold: the value it is compared with, in the same unit.
        fires: whether the figure is on the bad side of the threshold.
        statement: one sentence for people, which names the unit.
        samples: hashes of the samples concerned; empty where the model as a whole is concerned.
        kind: see `Criterion`.
        remedy: see `Criterion`.
        role: see `Criterion`.
        revision: the revision of the criterion that measured it.
    """

    check: str
    figure: float | None
    threshold: float
    fires: bool
    statement: str
    samples: tuple[str, ...] = ()
    kind: Kind = "note"
    remedy: str = ""
    role: Role = ""
    revision: int = 1

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Finding":
        """Build a finding from its stored fields.

        Unknown fields are ignored. Missing ones take their defaults; a missing role is looked up by the name of the check.
        """
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        known["samples"] = tuple(known.get("samples", ()))
        known.setdefault("role", _ROLES_OF_EARLIER_VERSIONS.get(values["check"], ""))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a figure of this name means. It makes the findings of that name.

    Attributes:
        name: the name under which findings are recorded and shown.
        kind: what it means when a finding fires. `doubt`: the robust accuracy itself may be too high. `masking`: attacks
            through the model's own gradients overestimate it, while other attacks may still be right. `note`: worth knowing.
        remedy: a noun phrase that completes "What would settle it: ..." where the finding leaves a verdict inconclusive.
        role: what else the verdict uses the finding for. `budget`: it was tried whether a larger budget breaks more; without
            such a finding nothing is confirmed. `misleading`: when it fires, gradients do not lead to adversarial examples.
            `constant`: when it fires, the model predicts the same class for all images and is degenerate. `unstable`: when it
            fires, the model does not always answer an image alike, so that no number is believed. `unseen`: when it
            fires, the relaxation did not see all operations of the model.
        revision: raise it when the measurement changes, so that recorded findings are measured again.
    """

    name: str
    kind: Kind
    remedy: str = ""
    role: Role = ""
    revision: int = 1

    def finding(
        self,
        figure: float,
        threshold: float,
        statement: str,
        *,
        fires: bool | None = None,
        samples: Sequence[str] = (),
    ) -> Finding:
        """Return a finding with the figure rounded to six decimals; by default it fires above the threshold."""
        fired = figure > threshold if fires is None else fires
        return self._made(round(figure, 6), threshold, bool(fired), statement, tuple(samples))

    def not_measured(self, reason: str) -> Finding:
        """Return a finding without a figure, which confirms nothing. `reason` is cut to 500 characters."""
        return self._made(None, 0.0, False, reason[:500], ())

    def _made(self, figure: float | None, threshold: float, fires: bool, statement: str, samples: tuple[str, ...]) -> Finding:
        return Finding(
            self.name, figure, threshold, fires, statement, samples, self.kind, self.remedy, self.role, self.revision
        )


Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Check(Generic[Subject]):
    """One check: a function from what it examines to findings of its criteria.

    Attributes:
        name: the name in the registry; also that of the finding if the check fails.
        examine: returns the findings; an empty list where the check does not apply.
        criteria: all criteria of which `examine` may return findings.
        passes: about how many forward and backward passes per sample it takes, as counted on small networks; the longest checks
            run first. 0 for a check of the record.
        always: whether it runs even where the protocol itself breaks every sample, so that nothing can be hidden.
    """

    name: str
    examine: Callable[[Subject], list[Finding]]
    criteria: tuple[Criterion, ...]
    passes: int = 0
    always: bool = False
