"""Findings as checks make them and as the record returns them."""

import json
from dataclasses import asdict

from kwbench.checks import CHECKS
from kwbench.finding import Criterion, Finding
from kwbench.verdict.record_checks import RECORD_CHECKS

BUDGET = Criterion("twice the budget", kind="doubt", remedy="a larger budget", role="budget", revision=3)


def test_a_finding_carries_the_texts_of_its_criterion() -> None:
    finding = BUDGET.finding(0.0200000001, 0.01, "it takes 2 points", samples=["a"])
    assert (finding.figure, finding.fires, finding.samples) == (0.02, True, ("a",))
    assert (finding.kind, finding.remedy, finding.role, finding.revision) == ("doubt", "a larger budget", "budget", 3)


def test_a_figure_that_could_not_be_measured_does_not_fire() -> None:
    finding = BUDGET.not_measured("x" * 600)
    assert (finding.figure, finding.fires, len(finding.statement)) == (None, False, 500)


def test_a_finding_survives_the_record() -> None:
    finding = BUDGET.finding(0.02, 0.01, "it takes 2 points", samples=["a"])
    assert Finding.from_json(json.loads(json.dumps(asdict(finding)))) == finding


def test_findings_of_earlier_and_later_versions_are_readable() -> None:
    earlier = {"check": "plateaus", "figure": 1.0, "threshold": 0.05, "fires": True, "statement": "flat", "samples": ["a"]}
    read = Finding.from_json({**earlier, "kind": "masking", "colour": "of a later version"})
    assert (read.kind, read.role, read.remedy, read.revision) == ("masking", "misleading", "", 1)


def criteria() -> list[Criterion]:
    of_models = [criterion for check in CHECKS.values() for criterion in check.criteria]
    return of_models + [criterion for check in RECORD_CHECKS.values() for criterion in check.criteria]


def test_names_of_criteria_are_unique() -> None:
    names = [criterion.name for criterion in criteria()]
    assert len(set(names)) == len(names)


def test_every_doubt_that_can_leave_a_verdict_inconclusive_has_a_remedy() -> None:
    doubts = [criterion for criterion in criteria() if criterion.kind == "doubt"]
    assert [doubt.name for doubt in doubts if not doubt.remedy and doubt.role != "constant"] == []
