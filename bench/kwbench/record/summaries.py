"""The summaries of evaluations on record."""

from collections.abc import Sequence
from dataclasses import replace

from kwbench.record.abstention import with_excused
from kwbench.record.certificates import with_certificates
from kwbench.record.derivation import derive
from kwbench.record.evaluation import Evaluation
from kwbench.record.kept_summaries import KeptSummaries, fingerprint
from kwbench.record.label_order import with_label_hints
from kwbench.record.store import Store
from kwbench.record.summary import Summary

# Outcomes from which on summaries are kept: fewer are summarized in a tenth of a second.
KEPT_FROM = 1_000_000


def summaries(store: Store, evaluations: Sequence[Evaluation] | None = None) -> list[Summary]:
    """Return the numbers of evaluations, by default of all on record, oldest first."""
    chosen = store.evaluations() if evaluations is None else evaluations
    findings = store.findings_by_evaluation(None if evaluations is None else [one.id for one in evaluations])
    many = evaluations is None and sum(one.spec.n * len(one.attack_runs) for one in chosen) >= KEPT_FROM
    derived = _kept_or_derived(store, chosen) if many else _derived(store, chosen)
    summarized = [replace(summary, findings=tuple(findings.get(summary.evaluation.id, ()))) for summary in derived]
    summarized = [with_excused(store, summary) for summary in summarized]
    return with_certificates(store, with_label_hints(store, summarized))


def _derived(store: Store, evaluations: Sequence[Evaluation]) -> list[Summary]:
    tallies = store.tallies(_runs(evaluations))
    reasons = store.reasons({run for run, tally in tallies.items() if tally.failed})
    return [derive(one, tallies, reasons) for one in evaluations]


def _kept_or_derived(store: Store, evaluations: Sequence[Evaluation]) -> list[Summary]:
    """Return the summaries of all evaluations: kept ones of the same outcomes, and others derived and kept from now on."""
    file = KeptSummaries.of(store.name)
    stored = store.fingerprints(_runs(evaluations))
    keys = {one.id: fingerprint(one, stored) for one in evaluations}
    kept = {one.id: file.summary(keys[one.id], one) for one in evaluations}
    others = [one for one in evaluations if kept[one.id] is None]
    derived = {summary.evaluation.id: summary for summary in _derived(store, others)} if others else {}
    if any(keys[number] is not None and summary.complete for number, summary in derived.items()):
        file.write({keys[number]: summary for number, summary in (kept | derived).items() if summary is not None})
    return [kept[one.id] or derived[one.id] for one in evaluations]


def _runs(evaluations: Sequence[Evaluation]) -> list[int]:
    return sorted({run for one in evaluations for run in one.attack_runs.values()})
