"""The papers' tables as data: claims, the networks and suites that measure them, and a lint of the claims themselves."""

from kwbench.claims.claim import PAPERS, Claim, read_claims
from kwbench.claims.comparison import ClaimComparison, claims_json, compare_claims, unclaimed
from kwbench.claims.full_size import full_size_entries, full_size_registry
from kwbench.claims.lint import Remark, lint
from kwbench.claims.mapping import ClaimMapping, map_claim

__all__ = [
    "PAPERS",
    "Claim",
    "ClaimComparison",
    "ClaimMapping",
    "Remark",
    "claims_json",
    "compare_claims",
    "full_size_entries",
    "full_size_registry",
    "lint",
    "map_claim",
    "read_claims",
    "unclaimed",
]
