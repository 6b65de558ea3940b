"""Result of an evaluation, as the Python API returns it: numbers, tables, and the adversarial images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kwbench.errors import CannotEvaluate
from kwbench.finding import Finding
from kwbench.outcome import CLEAN, Outcome, Status
from kwbench.record.certificates import bounds_text
from kwbench.record.results import to_frame, to_json
from kwbench.record.store import Store
from kwbench.record.summary import Summary
from kwbench.statistics import Interval
from kwbench.threat import ThreatModel
from kwbench.verdict import Verdict, verdict_json, verdict_on_record

if TYPE_CHECKING:
    import pandas as pd

# Columns of the record that describe the whole evaluation.
_EVALUATION_COLUMNS = ("model", "dataset", "suite", "norm", "eps", "eps_exact", "n", "stochastic", "cascade", "complete")
_EVALUATION_PREFIXES = ("a_std", "a_rob", "a_certified", "bounds")


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """Robust accuracy of one model under one suite, with the evidence.

    Accuracies are fractions of 1 with `low` and `high`, the ends of their 95 % interval; None where any attack lacks a
    judged outcome for some sample, which `missing` explains.
    """

    summary: Summary
    verdict: Verdict | None
    _outcomes: Mapping[str, Sequence[Outcome]]
    _adversarials: Tensor | None

    @property
    def model(self) -> str:
        """Name of the model on record."""
        return self.summary.model

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius of the perturbations."""
        return self.summary.threat

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.summary.n

    @property
    def complete(self) -> bool:
        """Whether every attack has a judged outcome for every sample that it should see."""
        return self.summary.complete

    @property
    def missing(self) -> tuple[str, ...]:
        """Why there is no robust accuracy, attack by attack; empty if complete."""
        return self.summary.missing

    @property
    def a_std(self) -> Interval | None:
        """Clean accuracy."""
        return self.summary.a_std

    @property
    def a_rob(self) -> Interval | None:
        """Robust accuracy: under the per-sample worst case over all attacks of the suite."""
        return self.summary.a_rob

    @property
    def a_certified(self) -> Interval | None:
        """Share of samples that are certified: no image of the ball is misclassified. A lower bound of the true robust
        accuracy; None without certificates."""
        return self.summary.a_certified

    @property
    def bounds(self) -> str | None:
        """`exact` where each sample is either broken or certified, `bracketed` where only some are; None without
        certificates."""
        return self.summary.bounds

    @property
    def a_rob_excused(self) -> Interval | None:
        """Robust accuracy if abstaining on an attacked image counts as right; None for a model that does not abstain."""
        return self.summary.a_rob_excused

    @property
    def a_protocol(self) -> Interval | None:
        """Accuracy under the worst case of the suite's protocol alone; None where the suite names none."""
        return self.summary.a_protocol

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings of the checks of model and record; empty where the suite asks for none."""
        return self.summary.findings

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers must know about how the model was loaded and run, one clause each."""
        return self.summary.notes

    @property
    def attacks(self) -> "pd.DataFrame":
        """One row an attack: its accuracy with interval, counts of statuses, and costs. Indexed by the attack's label."""
        frame = to_frame([self.summary])
        frame = frame[frame["attack"] != CLEAN]
        whole = [name for name in map(str, frame) if name in _EVALUATION_COLUMNS or name.startswith(_EVALUATION_PREFIXES)]
        return frame.drop(columns=whole).set_index("attack")

    @property
    def samples(self) -> "pd.DataFrame":
        """One row a sample, indexed by its position in the images.

        Columns: `sample` (hash), `label`, `clean_prediction`, `status` (wrong, broken or held over all attacks), `attack` (the
        one behind the worst case, None where no attack changed anything), `prediction` and `distance` of the worst image,
        `clean` and `robust` (0 or 1, or a stochastic model's probability of a right prediction), `forwards` and `backwards`
        over all attacks.
        """
        import pandas as pd  # slow to import, and not always needed

        by_label = {label: {outcome.index: outcome for outcome in rows} for label, rows in self._outcomes.items()}
        worst = self.summary.worst or (CLEAN,) * len(self.summary.index)
        rows: list[dict[str, Any]] = []
        for position, index in enumerate(self.summary.index.tolist()):
            clean = by_label[CLEAN][index]
            outcome = by_label[worst[position]][index]
            attempts = [attempt[index] for attempt in by_label.values() if index in attempt]
            rows.append(
                {
                    "index": index,
                    "sample": clean.sample,
                    "label": clean.label,
                    "clean_prediction": clean.prediction,
                    "status": str(Status.WRONG if clean.status is Status.WRONG else outcome.status),
                    "attack": None if worst[position] == CLEAN else worst[position],
                    "prediction": outcome.prediction,
                    "distance": outcome.distance,
                    "clean": _value(self.summary.clean_values, position),
                    "robust": _value(self.summary.robust_values, position),
                    "forwards": sum(attempt.forwards for attempt in attempts),
                    "backwards": sum(attempt.backwards for attempt in attempts),
                }
            )
        return pd.DataFrame(rows).set_index("index")

    @property
    def adversarials(self) -> Tensor:
        """Worst image of each sample, (n, c, h, w) float32 in [0, 1] on the CPU: the judged adversarial image, or the clean
        image where no attack broke it.

        Raises CannotEvaluate where images were not kept (`keep_adversarials=False`) or the evaluation is incomplete.
        """
        if self._adversarials is None:
            raise CannotEvaluate(
                f"{self.model}: no adversarial images were kept; evaluate with keep_adversarials=True"
                if self.complete
                else f"{self.model}: the evaluation is incomplete: {'; '.join(self.missing)}"
            )
        return self._adversarials

    def to_json(self) -> dict[str, Any]:
        """Return what `kwbench evaluate --json` prints."""
        return {**to_json(self.summary), "verdict": verdict_json(self.verdict)}

    def __repr__(self) -> str:
        return f"<EvaluationResult {self}>"

    def __str__(self) -> str:
        parts = [f"{self.model}: n = {self.n}, {self.threat}, {self.summary.evaluation.spec.suite}"]
        for name, interval in (("A_std", self.a_std), ("A_rob", self.a_rob)):
            if interval is not None:
                parts.append(f"{name} {100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]")
        if self.a_certified is not None:
            parts.append(bounds_text(self.summary))
        if not self.complete:
            parts.append(f"incomplete: {'; '.join(self.missing)}")
        if self.verdict is not None:
            parts.append(self.verdict.conclusion)
        return ", ".join(parts)


def result_of(store: Store, summary: Summary, images: Tensor | None, verdict: Verdict | None = None) -> EvaluationResult:
    """Read a result from the record.

    `images` are the clean images (n, c, h, w) in the order of the slice, None where adversarial images were not kept.
    `verdict` stands in place of the verdict on the suite's own protocol.
    """
    runs = summary.evaluation.attack_runs
    outcomes = {label: store.outcomes(run) for label, run in runs.items() if label not in summary.skipped}
    adversarials = None
    if images is not None and summary.complete:
        adversarials = images.detach().float().cpu().clone()
        for label in sorted(set(summary.worst) - {CLEAN}):
            kept = store.adversarials(runs[label])
            by_index = {outcome.index: outcome.sample for outcome in outcomes[label]}
            for position, worst in enumerate(summary.worst):
                sample = by_index.get(int(summary.index[position]))
                if worst == label and sample in kept:
                    adversarials[position] = torch.from_numpy(kept[sample])
    return EvaluationResult(summary, verdict or verdict_on_record(summary), outcomes, adversarials)


def _value(values: "np.ndarray[Any, np.dtype[np.float64]] | None", position: int) -> float | None:
    return None if values is None else float(values[position])
