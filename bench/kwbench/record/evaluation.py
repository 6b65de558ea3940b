"""An evaluation as it stands on record: what was asked for, and the attack runs that hold its outcomes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kwbench.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class AttackSpec:
    """One attack of an evaluation.

    Attributes:
        label: its label in the suite.
        identity: digest of everything that can change its outcomes.
        spec: the same in readable form; JSON values.
    """

    label: str
    identity: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """What to evaluate.

    Attributes:
        identity: digest of everything that identifies the evaluation.
        model: name of the model.
        dataset: name of the data set.
        suite: name of the suite.
        threat: norm and radius.
        n: number of samples.
        stochastic: whether the model's predictions are random.
        attacks: the attacks in order; the first is the clean images, with the label `clean`.
        spec: what `identity` is the digest of; JSON values.
        provenance: versions, device, command: stored, but not part of the identity; JSON values.
    """

    identity: str
    model: str
    dataset: str
    suite: str
    threat: ThreatModel
    n: int
    stochastic: bool
    attacks: tuple[AttackSpec, ...]
    spec: Mapping[str, Any]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation on record.

    Attributes:
        id: its row in the database.
        created: when it was registered first; UTC, ISO 8601.
        asked: when it was last asked for, by the wall clock; UTC, ISO 8601.
        spec: what it evaluates.
        attack_runs: id of each attack run, by label.
        position: its place in the order of writing; it moves to the end whenever the evaluation is asked for. 0 for those that
            were last asked for before the record kept this order.
        guarded: whether checksums show that its fields and attacks are what was written; False for those from before.
    """

    id: int
    created: str
    asked: str
    spec: EvaluationSpec
    attack_runs: Mapping[str, int]
    position: int = 0
    guarded: bool = False

    @property
    def recency(self) -> tuple[int, str, int]:
        """Sort key: the newest evaluation has the largest.

        The newest evaluation is the one whose command was started last, also if that command had nothing left to do: after a
        return to an older checkpoint, that checkpoint's evaluation is the newest again. Clocks only order evaluations from
        before the record kept the order of writing.
        """
        return self.position, self.asked if not self.position else "", self.id

    @property
    def origin(self) -> Mapping[str, Any]:
        """What identifies model, data and code: hashes, seed, revisions, versions. Empty where the record has none."""
        origin = self.spec.spec.get("origin")
        return origin if isinstance(origin, Mapping) else {}

    @property
    def earlier_version(self) -> bool:
        """Whether a version of kwbench made it that identified runs by a digest of its code, not by revisions of its parts.

        Such evaluations stay readable. Their attack runs are never reused, since the identities differ.
        """
        return "engine" not in self.origin
