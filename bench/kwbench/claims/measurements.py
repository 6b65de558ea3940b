"""The measured accuracies that stand beside a claim, from the record alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kwbench.claims.mapping import ClaimMapping, Protocol
from kwbench.config.prediction import PredictionRule
from kwbench.config.registry import ModelEntry
from kwbench.outcome import Outcome, Status
from kwbench.record.single_draw_protocol import single_draw_accuracy
from kwbench.record.store import Store
from kwbench.record.summary import Summary
from kwbench.statistics import Interval, accuracy_of_hits
from kwbench.threat import ThreatModel


@dataclass(frozen=True, slots=True)
class MeasuredAccuracy:
    """An accuracy on record: its label (an attack's, A_std or A_rob) and the evaluation that it comes from."""

    label: str
    accuracy: Interval
    summary: Summary = field(repr=False)


class Measurements:
    """The evaluations on record, by model and suite."""

    def __init__(self, store: Store | None, on_record: Sequence[Summary]) -> None:
        self._store = store
        self._summaries: dict[tuple[str, str], list[Summary]] = {}
        for summary in on_record:
            self._summaries.setdefault((summary.model, summary.evaluation.spec.suite), []).append(summary)

    def measured(self, model: str, mapping: ClaimMapping, threat: ThreatModel | None) -> tuple[MeasuredAccuracy, ...]:
        """Return the accuracies that stand beside a claim, the paper's reading first; empty if there are none.

        Of several evaluations the one on the most images counts, and of those the newest.
        """
        protocol = mapping.protocol
        assert protocol is not None
        suites = [protocol.suite]
        if model == mapping.full_size:
            # The sources of a transfer are part of the suite's name.
            suites += [suite for name, suite in self._summaries if name == model and _only_sources_differ(suite, protocol)]
        candidates = [
            (summary, accuracies)
            for suite in suites
            for summary in self._summaries.get((model, suite), ())
            if threat in (None, summary.threat) and (accuracies := self._accuracies(summary, protocol))
        ]
        if not candidates:
            return ()
        return max(candidates, key=lambda pair: (pair[0].n, pair[0].evaluation.recency))[1]

    def strong(self, model: str, threat: ThreatModel | None, beside: Summary) -> MeasuredAccuracy | None:
        """Return A_rob under the suite `strong` at this radius, preferably on the images of the evaluation `beside`."""
        candidates = [
            summary
            for summary in self._summaries.get((model, "strong"), ())
            if threat is not None and summary.threat == threat and summary.a_rob is not None
        ]
        if not candidates:
            return None
        best = max(candidates, key=lambda summary: (_images(summary) == _images(beside), summary.n, summary.evaluation.recency))
        assert best.a_rob is not None
        return MeasuredAccuracy("A_rob", best.a_rob, best)

    def _accuracies(self, summary: Summary, protocol: Protocol) -> tuple[MeasuredAccuracy, ...]:
        by_attack = {attack.name: attack.accuracy for attack in summary.attacks}
        labelled: list[tuple[str, Interval | None]]
        if protocol.reading == "clean":
            labelled = [("A_std", summary.a_std)]
        elif protocol.reading == "worst":
            labelled = [("A_rob", summary.a_rob_as_in_paper), *((label, by_attack.get(label)) for label in protocol.labels)]
        elif protocol.reading == "count":
            labelled = [("all", self._worst_of(summary, protocol.labels))]
        elif protocol.reading == "natural":
            labelled = [(label, self._perturbed_accuracy(summary, label)) for label in protocol.labels]
        else:
            labelled = [(label, by_attack.get(label)) for label in protocol.labels]
        if labelled[0][1] is None:
            return ()
        return tuple(MeasuredAccuracy(label, accuracy, summary) for label, accuracy in labelled if accuracy is not None)

    def _perturbed_accuracy(self, summary: Summary, label: str) -> Interval | None:
        """The share of perturbed images that are right, including those that are wrong on the clean image."""
        by_attack = {attack.name: attack.accuracy for attack in summary.attacks}
        if summary.stochastic or by_attack.get(label) is None:
            return by_attack.get(label)
        assert self._store is not None
        rows = self._store.outcomes(summary.evaluation.attack_runs[label])
        return accuracy_of_hits(sum(row.prediction == row.label for row in rows), len(rows))

    def _worst_of(self, summary: Summary, labels: Sequence[str]) -> Interval | None:
        """The accuracy that a tool reports that runs these attacks in turn on the images that are still right.

        For stochastic models the tool judges by a single draw after each attack.
        """
        assert self._store is not None
        runs = summary.evaluation.attack_runs
        complete = {attack.name for attack in summary.attacks if attack.accuracy is not None}
        if summary.clean is None or summary.a_std is None or not complete.issuperset(labels):
            return None
        clean, *attacks = (self._store.outcomes(runs[label]) for label in (summary.clean.name, *labels))
        if summary.stochastic:
            return single_draw_accuracy(clean, attacks).expected
        return _held_by_all(attacks)


def of_newest_weights(on_record: Sequence[Summary], entries: Mapping[str, ModelEntry]) -> list[Summary]:
    """Return the comparable evaluations, for each model only those of its newest weights. `entries`: registry, by model."""
    comparable = [summary for summary in on_record if _comparable(summary, entries)]
    newest = {summary.model: summary for summary in sorted(comparable, key=lambda summary: summary.evaluation.recency)}
    return [summary for summary in comparable if _weights(summary) == _weights(newest[summary.model])]


def _comparable(summary: Summary, entries: Mapping[str, ModelEntry]) -> bool:
    """Whether it is on test images and predicts by the rule of the model's entry, by default a single draw, as in papers."""
    entry = entries.get(summary.model)
    rule = entry.prediction if entry is not None else PredictionRule()
    recorded = summary.evaluation.origin.get("prediction", {})
    same_rule = (recorded.get("kind", "draw"), recorded.get("draws", 1)) == (rule.kind, rule.draws)
    return not summary.dataset.endswith(" (validation)") and same_rule


def _only_sources_differ(suite: str, protocol: Protocol) -> bool:
    name, _, settings = suite.partition(" with ")
    parameters = [setting.partition("=")[0] for setting in settings.split(", ")]
    return name == protocol.suite and all(parameter.endswith(".surrogate") for parameter in parameters)


def _held_by_all(attacks: Sequence[Sequence[Outcome]]) -> Interval:
    """The share of images that none of the attacks broke."""
    held = [{row.sample for row in rows if row.status is Status.HELD} for rows in attacks]
    return accuracy_of_hits(len(set.intersection(*held)), len(attacks[0]))


def _weights(summary: Summary) -> Any:
    return summary.evaluation.origin.get("model_sha256")


def _images(summary: Summary) -> Any:
    return summary.evaluation.origin.get("data_sha256")
