"""Certificates beside attacks: robust accuracy is bounded from both sides, and contradictions are reported."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kwbench
from defences import exact_truth
from kwbench.config.suite import read_suite
from kwbench.evaluation.result import EvaluationResult
from kwbench.experiments.certificates import Certificates
from kwbench.experiments.gaussian import GaussianDraws
from kwbench.networks.architectures.noise import Smoothed
from kwbench.record.certificates import CERTIFICATE
from kwbench.record.store import Store
from kwbench.training import save_checkpoint
from support.small_models import first_images, trained_cnn
from support.small_registry import ENTRY, trained

SUITE = """
cascade: true
diagnose: true
protocol: [apgd]
attacks:
  apgd: {steps: 20}
  complete-search: {branches: 100000, effort: auto, when: deterministic}
"""


def evaluated(folder: Path, kind: str, n: int, **options: Any) -> EvaluationResult:
    (folder / "both.yaml").write_text(SUITE)
    batch = first_images(n)
    return kwbench.evaluate(
        exact_truth.FACTORIES[kind](),
        batch.x,
        batch.y,
        suite=folder / "both.yaml",
        eps=exact_truth.SIZES[kind].eps,
        dataset="digits",
        threads=1,
        db=folder / "results.db",
        **options,
    )


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["relu", "kwta_wide"])
def test_what_is_certified_what_is_not_broken_and_what_was_solved_are_the_same(kind: str, tmp_path: Path) -> None:
    result = evaluated(tmp_path, kind, exact_truth.SAMPLES)
    truth = exact_truth.truths(kind)
    assert result.summary.robust_values is not None
    assert result.summary.certified is not None
    assert (result.summary.robust_values > 0).tolist() == truth
    assert result.summary.certified.tolist() == truth
    assert result.bounds == "exact"
    assert result.verdict is not None
    share = f"{100 * sum(truth) / len(truth):.1f}"
    assert f"Certified {share} <= A_rob <= {share} (exact)" in result.verdict.sentence()
    assert f"certified {share} <= A_rob <= {share}" in str(result)


def test_a_certificate_that_an_attack_contradicts_is_reported_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def certify_all(self: Certificates, subject: Any) -> dict[str, Any]:
        return {"bound": np.ones(len(subject.batch)), "seconds": np.zeros(len(subject.batch))}

    with monkeypatch.context() as mutant:
        mutant.setattr(Certificates, "__call__", certify_all)
        weak = evaluated(tmp_path, "kwta_wide", 16, parameters={"apgd.steps": 1, "complete-search.effort": 0.001})
    assert weak.bounds == "exact"
    sound = evaluated(tmp_path, "kwta_wide", 16)
    assert sound.verdict is not None
    assert sound.verdict.conclusion == "inconclusive"
    assert "certificates and attacks contradict each other" in sound.verdict.sentence()
    assert any("which are certified: an error in kwbench" in note for note in sound.notes)


def test_an_effort_of_zero_leaves_out_search_and_certificates(tmp_path: Path) -> None:
    result = evaluated(tmp_path, "relu", 8, parameters={"complete-search.effort": 0})
    assert result.a_certified is None
    assert result.summary.skipped["complete-search"] == "its effort is 0"
    assert Store.open(str(tmp_path / "results.db")).experiments(of=CERTIFICATE) == []


def test_a_search_without_enough_effort_brackets_and_is_named_by_the_verdict(tmp_path: Path) -> None:
    result = evaluated(tmp_path, "kwta_wide", 24, parameters={"complete-search.effort": 0.04})
    assert result.bounds == "bracketed"
    assert result.a_certified is not None
    assert result.a_rob is not None
    assert result.a_certified.value < result.a_rob.value
    assert result.verdict is not None
    if result.verdict.conclusion == "confirmed":
        assert re.search(r"ran out of effort on \d+ of 24 samples", result.verdict.sentence())


def test_networks_that_the_ball_leaves_undecided_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text(SUITE)
    batch = first_images(4)
    wide = torch.nn.Sequential(torch.nn.Conv2d(1, 128, 3, padding=1), torch.nn.ReLU(), trained_like(128))
    result = kwbench.evaluate(wide, batch.x, batch.y, suite=tmp_path / "both.yaml", eps=0.5, dataset="digits", threads=1)
    assert result.a_certified is None
    assert re.fullmatch(r"the ball leaves \d+ units undecided, more than 4000", result.summary.skipped["complete-search"])


def trained_like(channels: int) -> torch.nn.Module:
    """Return the trained network behind the mean of channels."""
    mean = torch.nn.Conv2d(channels, 1, 1, bias=False)
    mean.weight.data.fill_(1 / channels)
    return torch.nn.Sequential(mean, trained_cnn())


def test_the_strong_suite_searches_last_and_completely() -> None:
    suite = read_suite("strong")
    assert suite.complete_search is suite.attacks[-1]
    assert suite.complete_search.parameters["effort"] == "auto"


def smoothed(tmp_path: Path) -> EvaluationResult:
    """Evaluate a network behind Gaussian noise."""
    (tmp_path / "both.yaml").write_text(SUITE)
    sha256 = save_checkpoint(Smoothed(trained("relu", 6), 0.1), tmp_path / "small.safetensors")
    entry = ENTRY.format(name="small", activation="{name: relu}", sha256=sha256)
    registry = tmp_path / "registry.yaml"
    registry.write_text(f"models:\n{entry}    smoothing: 0.1\n")
    return kwbench.evaluate(
        "small", registry=registry, suite=tmp_path / "both.yaml", norm="l2", eps=0.05, n=16, threads=1, keep_adversarials=False
    )


def test_gaussian_bounds_that_attacks_contradict_make_the_verdict_inconclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_right(self: GaussianDraws, subject: Any) -> dict[str, Any]:
        draws = np.full(len(subject.batch), 10_000.0)
        return {"correct": draws, "draws": draws}

    monkeypatch.setattr(GaussianDraws, "__call__", all_right)
    result = smoothed(tmp_path)
    assert result.verdict is not None
    assert result.verdict.conclusion == "inconclusive"
    assert "certificates and attacks contradict each other" in result.verdict.sentence()


def test_a_model_that_declares_gaussian_noise_is_certified_in_l2(tmp_path: Path) -> None:
    result = smoothed(tmp_path)
    assert result.summary.stochastic
    (finding,) = (one for one in result.summary.findings if one.check == "contradicted certificates")
    assert not finding.fires
    assert result.bounds == "bracketed"
    assert result.a_certified is not None
    assert result.a_rob is not None
    assert 0.1 < result.a_certified.value <= result.a_rob.value
    assert result.summary.certified is None
    assert result.to_json()["a_certified"]["value"] == result.a_certified.value
