"""Attacks that contradict certificates are found in the whole record, and attacks that do not are left alone."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kwbench.finding import Finding
from kwbench.record.certificates import CERTIFICATE, GAUSSIAN
from kwbench.record.contradictions import contradictions, mean_is_below_bounds, rarer_than_bounds
from kwbench.record.measurement import Measurement
from kwbench.record.store import Store
from kwbench.record.summaries import summaries
from kwbench.verdict.record_checks import examine_record
from support.records import deterministic, digest, drawn, record, rows, sample, specification

SMOOTHED = {"entry": {"smoothing": 0.25}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


def measured(store: Store, name: str, origin: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Put a measurement of the first samples on record."""
    n = len(next(iter(arrays.values())))
    spec = {"origin": dict(origin), "samples": [sample(index) for index in range(n)], "parameters": {}}
    values = {key: np.array(column, dtype=float) for key, column in arrays.items()}
    store.record_experiment(Measurement(digest(name, spec, arrays), name, "net", "digits", spec, {}, values))


def ball(norm: str, eps: str, **more: Any) -> dict[str, Any]:
    return {"origin": {"norm": norm, "eps": eps, **more}, "norm": norm, "eps": eps}


def certified(store: Store, bounds: list[float]) -> None:
    """Put certificates of the first samples on record, in linf at 0.2, and an evaluation that breaks none of them."""
    evaluation = deterministic(store, {"clean": "hhhh", "pgd": "hhhh"}, suite="certified", **ball("linf", "0.2"))
    measured(store, CERTIFICATE, evaluation.origin, {"bound": bounds})


@pytest.mark.parametrize(
    ("norm", "eps", "reached", "letters", "contradicted"),  # `reached` is the distance of what the attack found
    [
        pytest.param("linf", "0.2", 0.2, "hbhh", [1], id="the same ball"),
        pytest.param("linf", "0.2", None, "hhbh", [], id="a sample without a certificate"),
        pytest.param("linf", "0.1", 0.1, "bhhh", [0], id="a smaller radius"),
        pytest.param("linf", "0.3", 0.15, "bhhh", [0], id="a larger radius, of which the attack needed a part"),
        pytest.param("linf", "0.3", 0.25, "bhhh", [], id="a larger radius that the attack needed"),
        pytest.param("linf", "0.1", 0.15, "hhhh", [0, 1, 3], id="minimum-norm attacks beyond their ball"),
        pytest.param("linf", "0.1", None, "hhhh", [], id="attacks without an adversarial image"),
        pytest.param("l2", "0.2", 0.2, "hbhh", [1], id="an l2 ball lies in the linf ball of its radius"),
        pytest.param("l2", "0.4", 0.3, "hbhh", [], id="a larger l2 ball does not"),
        pytest.param("linf", "0.9", 0.9, "whhh", [0], id="a sample that is wrong without an attack"),
    ],
)
def test_an_image_in_a_certified_ball_contradicts_its_certificate(
    store: Store, norm: str, eps: str, reached: float | None, letters: str, contradicted: list[int]
) -> None:
    certified(store, [1.0, 0.5, -0.1, 0.2])
    spec = specification(attacks=("clean", "pgd"), n=4, **ball(norm, eps))
    clean, pgd = spec.attacks
    spec = replace(spec, attacks=(clean, replace(pgd, spec={**pgd.spec, "declared": {"minimum_norm": "b" not in letters}})))
    record(store, spec, {"clean": rows("hhhh"), "pgd": [replace(outcome, distance=reached) for outcome in rows(letters)]})
    assert [(found.attack, found.position) for found in contradictions(store)] == [("pgd", row) for row in contradicted]


def test_a_bound_in_l2_says_nothing_about_linf(store: Store) -> None:
    evaluation = deterministic(store, {"clean": "hhhh", "pgd": "bbbb"}, **ball("linf", "0.1"))
    measured(store, CERTIFICATE, {**evaluation.origin, "norm": "l2", "eps": "0.5"}, {"bound": [1.0] * 4})
    assert contradictions(store) == []


def test_certificates_of_another_checkpoint_are_not_concerned(store: Store) -> None:
    certified(store, [1.0] * 4)
    deterministic(store, {"clean": "hhhh", "pgd": "bbbb"}, checkpoint="c1", **ball("linf", "0.2"))
    assert contradictions(store) == []


def gaussian(store: Store, fresh: list[int]) -> tuple[dict[str, Finding], list[int]]:
    """Record a model with noise of 0.25 whose samples are right in 990 of 1000 clean draws, and in `fresh` of 100 under attack;
    return the findings of the record, and the positions of contradicted samples."""
    n = len(fresh)
    spec = specification(attacks=("clean", "eot"), n=n, stochastic=True, **ball("l2", "0.1", **SMOOTHED))
    evaluation = record(
        store, spec, {"clean": drawn([99] * n, [99] * n), "eot": drawn([min(98, hits) for hits in fresh], fresh)}
    )
    measured(store, GAUSSIAN, evaluation.origin, {"correct": [990] * n, "draws": [1000] * n})
    (summary,) = summaries(store)
    outcomes = {label: store.outcomes(run) for label, run in evaluation.attack_runs.items()}
    return {finding.check: finding for finding in examine_record(summary, outcomes)}, [
        found.position for found in contradictions(store)
    ]


# 990 right draws of 1000 prove a probability of at least 0.945 at a distance of 0.1.
def test_right_answers_as_rare_as_chance_allows_contradict_no_gaussian_bound(store: Store) -> None:
    findings, contradicted = gaussian(store, [94, 95, 97, 88, 96, 95, 99, 93])
    assert not findings["contradicted certificates"].fires
    assert contradicted == []


def test_right_answers_of_a_sample_that_are_too_rare_contradict_its_gaussian_bound(store: Store) -> None:
    findings, contradicted = gaussian(store, [94, 95, 97, 70, 96, 95, 99, 93])
    finding = findings["contradicted certificates"]
    assert finding.fires
    assert finding.samples == (sample(3),)
    assert contradicted == [3]
    assert finding.role == "unstable", "no verdict may confirm such a number"


def test_right_answers_that_are_too_rare_in_the_mean_contradict_the_gaussian_bounds(store: Store) -> None:
    findings, contradicted = gaussian(store, [89] * 40)
    finding = findings["contradicted certificates"]
    assert finding.fires
    assert finding.samples == ()
    assert contradicted == []
    assert "rarer in the mean" in finding.statement


def test_the_tests_of_gaussian_bounds_keep_their_error() -> None:
    """Draws whose probabilities are the bounds themselves are called contradictions at most once in 2000 times."""
    numbers = np.random.default_rng(0)
    bounds = numbers.uniform(0.2, 1.0, 20)
    trials = numbers.binomial(100, bounds, (4000, 20))
    draws = np.full(20, 100)
    single = sum(bool(rarer_than_bounds(right, draws, bounds).any()) for right in trials)
    mean = sum(mean_is_below_bounds(right, draws, bounds) for right in trials)
    # A binomial count of mean 2 exceeds 8 once in 4000 times.
    assert single <= 8
    assert mean <= 8
