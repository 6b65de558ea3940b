"""Verdicts on robust accuracies, from the record alone. Nothing here imports torch."""

from kwbench.verdict.record_checks import BestKnown, best_known
from kwbench.verdict.verdict import (
    CAVEAT,
    LEVEL,
    NEAR_CHANCE,
    NEGLIGIBLE,
    OVERESTIMATE,
    Conclusion,
    Verdict,
    finding_json,
    robustness_is_negligible,
    verdict,
    verdict_json,
    verdict_on_record,
)

__all__ = [
    "CAVEAT",
    "LEVEL",
    "NEAR_CHANCE",
    "NEGLIGIBLE",
    "OVERESTIMATE",
    "BestKnown",
    "Conclusion",
    "Verdict",
    "best_known",
    "finding_json",
    "robustness_is_negligible",
    "verdict",
    "verdict_json",
    "verdict_on_record",
]
