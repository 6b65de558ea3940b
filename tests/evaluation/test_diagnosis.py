"""From a command or a suite to a verdict on record: with real small models, through the whole of kwbench."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kwbench.checks import CHECKS, Retried, Survivors
from kwbench.config.suite import Suite, read_suite
from kwbench.evaluation.execution.evaluator import LocalEvaluator
from kwbench.evaluation.request import Request
from kwbench.evaluation.runner import Progress, evaluate
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.verdict import Verdict, verdict_on_record
from support.small_registry import request, write_registry

SUITE = """\
cascade: true
diagnose: true
protocol: [pgd]
attacks:
  pgd: {attack: apgd, steps: 10}
  smooth: {attack: apgd, loss: margin, steps: 20, gradient: {kind: smooth, sigma: 0.05, draws: 4}}
  es: {attack: apgd, loss: margin, steps: 20, gradient: {kind: es, sigma: 0.05, draws: 20}}
"""
NUMPY = """\
import torch
from support.small_models import trained_cnn

class Detour(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = trained_cnn()

    def forward(self, x):
        levels = torch.from_numpy((x.detach().numpy() * 8).round() / 8)
        return self.network(levels + (x - x.detach()) * 0)

def factory():
    return Detour()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    (tmp_path / "strong.yaml").write_text(SUITE)
    return read_suite(str(tmp_path / "strong.yaml"))


def judged(store: Store, wanted: Request) -> Verdict:
    evaluation = evaluate(wanted, store)
    (mine,) = summaries(store, [evaluation])
    found = verdict_on_record(mine)
    assert found is not None
    return found


def test_a_suite_that_diagnoses_leaves_its_findings_on_record(store: Store, suite: Suite, tmp_path: Path) -> None:
    seen: list[Progress] = []
    evaluation = evaluate(request(write_registry(tmp_path), suite=suite), store, seen.append)
    found = store.findings(evaluation.id)
    assert {"eps sweep", "twice the budget", "gradient-free", "unseen", "failures"} <= {each.check for each in found}
    assert len({each.check for each in found}) == len(found)
    assert (seen[-1].label, seen[-1].done) == ("diagnosis", seen[-1].samples)
    assert seen[-1].samples >= len(CHECKS)


def test_an_attack_that_saw_some_of_the_survivors_counts_as_made_on_none(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Survivors] = []

    def seen(evaluator: LocalEvaluator, survivors: Survivors) -> Retried:
        found.append(survivors)
        return Retried(failure="not wanted")

    monkeypatch.setattr(LocalEvaluator, "retry", seen)
    (tmp_path / "screened.yaml").write_text(
        SUITE.replace(
            "{attack: apgd, loss: margin, steps: 20, gradient: {kind: es",
            "{attack: apgd, screen: 4, steps: 1, gradient: {kind: es",
        )
    )
    evaluate(request(write_registry(tmp_path), suite=read_suite(str(tmp_path / "screened.yaml")), eps="0.02"), store)
    assert sum(len(part.rows) for part in found) > 8
    assert {part.tried for part in found} == {("pgd", "smooth")}


def test_where_the_protocol_leaves_nothing_only_a_thorough_diagnosis_looks_for_what_the_gradients_hide(
    store: Store, suite: Suite, tmp_path: Path
) -> None:
    wanted = request(write_registry(tmp_path), suite=suite, eps="0.5")
    evaluation = evaluate(wanted, store)
    assert verdict_on_record(summaries(store, [evaluation])[0]) is not None
    brief = {each.check: each for each in store.findings(evaluation.id)}
    assert {"state", "relaxed operations", "left out"} <= brief.keys()
    assert not {"eps sweep", "shattered gradients"} & brief.keys()
    seen: list[Progress] = []
    evaluate(wanted, store, seen.append, thoroughly=True)
    found = {each.check: each for each in store.findings(evaluation.id)}
    assert {"eps sweep", "shattered gradients", "state"} <= found.keys()
    assert "left out" not in found
    assert seen[-1].samples < len(CHECKS)  # those of the answers were on record
    assert verdict_on_record(summaries(store, [evaluation])[0]).conclusion == "confirmed"  # type: ignore[union-attr]


def test_a_suite_that_does_not_diagnose_leaves_none(store: Store, suite: Suite, tmp_path: Path) -> None:
    evaluation = evaluate(request(write_registry(tmp_path), suite=replace(suite, diagnose=False)), store)
    assert store.findings(evaluation.id) == []
    assert verdict_on_record(summaries(store, [evaluation])[0]) is None


def test_asked_again_the_model_is_not_examined_again_and_the_verdict_is_the_same(
    store: Store, suite: Suite, tmp_path: Path
) -> None:
    wanted = request(write_registry(tmp_path), suite=suite)
    first = judged(store, wanted)
    seen: list[Progress] = []
    evaluate(wanted, store, seen.append)
    assert all(each.label != "diagnosis" for each in seen)
    assert judged(store, wanted) == first


def test_a_sound_network_is_confirmed(store: Store, suite: Suite, tmp_path: Path) -> None:
    # At a small radius something is left, so that twice the budget has to be tried.
    found = judged(store, request(write_registry(tmp_path), suite=suite, eps="0.03"))
    assert found.conclusion == "confirmed", found.sentence()
    assert found.reasons[0].check == "twice the budget"
    assert "surviving samples" in found.reasons[0].statement


@pytest.mark.parametrize(("model", "n"), [("small", 64), ("small-random", 6)])
def test_what_is_found_does_not_depend_on_the_number_of_workers(model: str, n: int, suite: Suite, tmp_path: Path) -> None:
    registry, found = write_registry(tmp_path), []
    for threads in (1, 2):
        record = Store.open(str(tmp_path / f"{threads}.db"), create=True)
        evaluation = evaluate(request(registry, model, suite=suite, eps="0.03", threads=threads, n=n, tile=n // 2), record)
        found.append([replace(each, statement="") for each in record.findings(evaluation.id)])
        record.close()
    assert found[0] == found[1]
    assert any(each.check == "twice the budget" and each.figure is not None for each in found[0])


def test_a_stochastic_network_gets_a_verdict_too(store: Store, suite: Suite, tmp_path: Path) -> None:
    found = judged(store, request(write_registry(tmp_path), "small-random", suite=suite, n=12))
    assert found.conclusion in ("confirmed", "overestimated", "inconclusive")
    (evaluation,) = store.evaluations()
    checks = {each.check for each in store.findings(evaluation.id)}
    assert {"randomness", "gradient noise", "frozen randomness"} <= checks
    assert all(each.figure is not None for each in store.findings(evaluation.id))


def test_a_user_s_file_is_examined_in_its_own_process_and_what_hides_is_named(
    store: Store, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    (tmp_path / "defence.py").write_text(NUMPY)
    wanted = Request(f"{tmp_path / 'defence.py'}:factory", suite=suite, dataset="digits", n=64, eps="0.2")
    found = judged(store, wanted)
    assert found.conclusion == "overestimated", found.sentence()
    findings = {each.check: each for each in store.findings(store.evaluations()[0].id)}
    assert findings["unseen"].fires
    assert findings["zero gradients"].fires
    assert "gradient-free" in {each.check for each in found.reasons}
