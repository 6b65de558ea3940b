"""Each claim beside what is on record, or the commands that measure it. A pure view of the record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kwbench.claims.claim import Claim
from kwbench.claims.commands import commands_for, network_differences
from kwbench.claims.lint import lint
from kwbench.claims.mapping import DATASETS, ClaimMapping, map_claim
from kwbench.claims.measurements import MeasuredAccuracy, Measurements, of_newest_weights
from kwbench.config.registry import ModelEntry, Registry, read_registry
from kwbench.errors import UsageError
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.record.summary import Summary
from kwbench.verdict import verdict_on_record

State = Literal["run", "runnable", "not comparable"]


@dataclass(frozen=True, slots=True)
class ClaimComparison:
    """A claim beside what was measured.

    Args:
        status: `run` if it was measured, `runnable` if `commands` would measure it on `hardware`, or `not comparable`, for the
            reason `mapping.why_not`.
        model: The network that was, or would be, measured; empty if the claim is not comparable.
        differs: How that network differs from the paper's.
        measured: The accuracies, the paper's reading first.
        strong: A_rob of the same network under the suite `strong` at the same radius.
        verdict: The conclusion on that evaluation; empty if there is none.
        remarks: The rules of the lint that the claim violates.
    """

    claim: Claim
    mapping: ClaimMapping
    status: State
    model: str
    differs: tuple[str, ...]
    measured: tuple[MeasuredAccuracy, ...]
    strong: MeasuredAccuracy | None
    verdict: str
    commands: tuple[str, ...]
    hardware: str
    remarks: tuple[str, ...]


def compare_claims(
    claims: Sequence[Claim],
    store: Store | None,
    registry: Registry | None = None,
    *,
    on_record: Sequence[Summary] | None = None,
) -> list[ClaimComparison]:
    """Compare each claim with the record. Without a store nothing counts as measured.

    Args:
        registry: Our networks; by default the registry in this folder, or the one that comes with kwbench.
        on_record: The store's summaries if they have been read already.

    Raises:
        UsageError: The registry lacks a network that a claim needs.
    """
    entries = (registry or read_registry()).entries
    if on_record is None:
        on_record = [] if store is None else summaries(store)
    measurements = Measurements(store, of_newest_weights(on_record, entries))
    remarks: dict[Claim, list[str]] = {}
    for remark in lint(claims):
        for claim in remark.claims:
            remarks.setdefault(claim, []).append(remark.rule)
    return [_compare(claim, measurements, entries, tuple(remarks.get(claim, ()))) for claim in claims]


def unclaimed(claims: Sequence[Claim], on_record: Sequence[Summary], registry: Registry | None = None) -> list[Summary]:
    """Return the evaluations of networks of the registry, on the claims' data sets, that no claim is about.

    Only complete evaluations of the newest weights: for each network, suite, data set and radius the one on the most images,
    and of those the newest.
    """
    entries = (registry or read_registry()).entries
    mappings = [map_claim(claim) for claim in claims]
    claimed = {name for mapping in mappings for name in (mapping.model, mapping.full_size)}
    others = {name for name in entries if name not in claimed and name.partition("/")[0] in DATASETS.values()}
    kept: dict[tuple[str, str, str, str], Summary] = {}
    for summary in sorted(of_newest_weights(on_record, entries), key=lambda summary: (summary.n, summary.evaluation.recency)):
        if summary.complete and summary.model in others:
            kept[
                summary.model, summary.evaluation.spec.suite, summary.dataset, f"{summary.threat.norm} {summary.threat.eps}"
            ] = summary
    return [kept[key] for key in sorted(kept)]


def _compare(
    claim: Claim, measurements: Measurements, entries: Mapping[str, ModelEntry], remarks: tuple[str, ...]
) -> ClaimComparison:
    mapping = map_claim(claim)
    if not mapping.comparable:
        return ClaimComparison(claim, mapping, "not comparable", "", (), (), None, "", (), "", remarks)
    # A measurement of the paper's own network has priority; if nothing was measured, ours is the cheaper one to run.
    ours = mapping.model if mapping.model in entries else None
    models = [name for name in (ours, mapping.full_size) if name is not None]
    measured: tuple[MeasuredAccuracy, ...] = ()
    for model in reversed(models):
        if measured := measurements.measured(model, mapping, claim.threat):
            models = [model]
            break
    if not models:
        raise UsageError(f"the registry has no model {mapping.model!r}, which {claim.name} needs")
    model = models[0]
    strong = measurements.strong(model, claim.threat, measured[0].summary) if measured else None
    verdict = None if strong is None else verdict_on_record(strong.summary)
    return ClaimComparison(
        claim=claim,
        mapping=mapping,
        status="run" if measured else "runnable",
        model=model,
        differs=() if model == mapping.full_size else network_differences(mapping, entries[model]),
        measured=measured,
        strong=strong,
        verdict="" if verdict is None else verdict.conclusion,
        commands=commands_for(
            claim,
            mapping,
            model,
            pinned=model in entries and entries[model].checkpoint is not None,
            images=measured[0].summary.n if measured else None,
            strong_images=None if strong is None else strong.summary.n,
        ),
        hardware="one GPU" if model == mapping.full_size else "a CPU",
        remarks=remarks,
    )


def claims_json(comparisons: Sequence[ClaimComparison]) -> list[dict[str, Any]]:
    """Return comparisons as JSON values: accuracies as fractions of 1, the claim in percent as printed."""
    return [_json(comparison) for comparison in comparisons]


def _json(comparison: ClaimComparison) -> dict[str, Any]:
    claim, mapping = comparison.claim, comparison.mapping
    return {
        "paper": claim.paper,
        "table": claim.table,
        "dataset": claim.dataset,
        "architecture": claim.architecture,
        "pretrained": claim.pretrained,
        "training": claim.training,
        "activation": claim.activation,
        "attack": claim.attack,
        "norm": claim.norm or None,
        "eps": claim.eps or None,
        "claimed_percent": claim.percent,
        "quoted_from": claim.quoted_from or None,
        "inferred": list(claim.inferred),
        "status": comparison.status,
        "why_not": mapping.why_not or None,
        "model": comparison.model or None,
        "full_size": mapping.full_size,
        "differs": list(comparison.differs),
        "suite": None if mapping.protocol is None else mapping.protocol.suite,
        "measured": [_measured_json(measured) for measured in comparison.measured],
        "strong": None if comparison.strong is None else _measured_json(comparison.strong),
        "verdict": comparison.verdict or None,
        "commands": list(comparison.commands),
        "hardware": comparison.hardware or None,
        "remarks": list(comparison.remarks),
    }


def _measured_json(measured: MeasuredAccuracy) -> Mapping[str, Any]:
    accuracy = measured.accuracy
    return {
        "label": measured.label,
        "accuracy": {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high},
        "model": measured.summary.model,
        "dataset": measured.summary.dataset,
        "n": measured.summary.n,
        "run": measured.summary.evaluation.spec.identity,
    }
