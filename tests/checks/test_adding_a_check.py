"""A new check is a function and a line in the registry: everything else follows from its record."""

from pathlib import Path

import pytest

from kwbench.checks import CHECKS, Case, outdated
from kwbench.config.suite import read_suite
from kwbench.evaluation.runner import evaluate
from kwbench.finding import Check, Criterion, Finding
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.verdict import verdict_on_record
from kwbench.verdict.record_checks import RECORD_CHECKS, Record
from support.small_registry import request, write_registry

SUITE = """\
cascade: true
diagnose: true
protocol: [pgd]
attacks:
  pgd: {attack: pgd, steps: 5}
"""
BRIGHT = Criterion("bright pixels", kind="doubt", remedy="darker images")
FEW = Criterion("few samples", kind="doubt", remedy="a larger slice")


def few_bright_pixels(case: Case) -> list[Finding]:
    brightest = case.batch.x.amax().item()
    return [BRIGHT.finding(brightest, 0.5, f"the brightest pixel is {brightest:.1f}", samples=case.batch.samples[:1])]


def many_samples(record: Record) -> list[Finding]:
    return [FEW.finding(float(record.summary.n), 1000.0, "there are few samples", fires=record.summary.n < 1000)]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKS, "bright pixels", Check("bright pixels", few_bright_pixels, (BRIGHT,), passes=1))
    monkeypatch.setitem(RECORD_CHECKS, "few samples", Check("few samples", many_samples, (FEW,)))


def test_findings_of_added_checks_are_recorded_and_decide_the_verdict(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    store = Store.open(str(tmp_path / "results.db"), create=True)
    wanted = request(write_registry(tmp_path), suite=read_suite(str(tmp_path / "suite.yaml")), eps="0.01")
    evaluation = evaluate(wanted, store)
    findings = {finding.check: finding for finding in store.findings(evaluation.id)}
    assert (findings["bright pixels"].fires, findings["bright pixels"].kind) == (True, "doubt")
    assert len(findings["bright pixels"].samples) == 1
    assert findings["few samples"].remedy == "a larger slice"
    verdict = verdict_on_record(summaries(store, [evaluation])[0])
    store.close()
    assert verdict is not None
    assert verdict.conclusion == "inconclusive"
    assert {"bright pixels", "few samples"} <= {reason.check for reason in verdict.reasons}
    assert "darker images" in verdict.would_settle
    assert "a larger slice" in verdict.would_settle


def test_a_check_of_a_newer_revision_is_due_again(monkeypatch: pytest.MonkeyPatch) -> None:
    old = BRIGHT.finding(0.9, 0.5, "the brightest pixel is 0.9")
    assert outdated([old]) == set()
    newer = Criterion("bright pixels", kind="doubt", revision=2)
    monkeypatch.setitem(CHECKS, "bright pixels", Check("bright pixels", few_bright_pixels, (newer,), passes=1))
    assert outdated([old]) == {"bright pixels"}
