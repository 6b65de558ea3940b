"""The verdict on a robust accuracy, from the record alone. Nothing here imports torch."""

from kwbench.verdict.verdict import (
    CAVEAT,
    LEVEL,
    NEAR_CHANCE,
    NOTHING,
    OVERESTIMATE,
    Verdict,
    Word,
    finding_json,
    nothing_is_left,
    verdict,
    verdict_json,
    verdict_on_record,
)

__all__ = [
    "CAVEAT",
    "LEVEL",
    "NEAR_CHANCE",
    "NOTHING",
    "OVERESTIMATE",
    "Verdict",
    "Word",
    "finding_json",
    "nothing_is_left",
    "verdict",
    "verdict_json",
    "verdict_on_record",
]
