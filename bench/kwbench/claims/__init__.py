"""The papers' tables as data: each cell a claim, the place where it can be measured, and what cannot be true of it."""

from kwbench.claims.claim import PAPERS, Claim, read_claims
from kwbench.claims.full_size import full_size_entries, full_size_registry
from kwbench.claims.lint import Remark, lint
from kwbench.claims.mapping import Place, place_of
from kwbench.claims.record import Comparison, claims_json, comparisons, unclaimed

__all__ = [
    "PAPERS",
    "Claim",
    "Comparison",
    "Place",
    "Remark",
    "claims_json",
    "comparisons",
    "full_size_entries",
    "full_size_registry",
    "lint",
    "place_of",
    "read_claims",
    "unclaimed",
]
