"""What stands above a table of the leaderboard, and what its headings and tabs say."""

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kwbench.outcome import CLEAN
from kwbench.record.store import Store
from kwbench.report import write_report
from support.records import deterministic, drawn, network, record, rows, specification
from support.report_records import verdicts


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "results.db"), create=True)
    yield opened
    opened.close()


def text_of(page: str) -> str:
    """Return the text of a page with single spaces."""
    return " ".join(html.unescape(re.sub("<[^>]*>", "", page)).split())


def index(store: Store, folder: Path) -> str:
    write_report(store, folder, {"html"})
    return (folder / "index.html").read_text()


def answer(store: Store, folder: Path) -> str:
    (paragraph,) = re.findall(r'<p class="answer">.*?</p>', index(store, folder), re.S)
    return text_of(paragraph)


def under(store: Store, model: str, attack: str, **options: Any) -> None:
    """Record an evaluation under one attack of this kind, which breaks half of the samples."""
    spec = specification(model, **options)
    named = tuple(replace(one, spec={**one.spec, "attack": attack}) for one in spec.attacks)
    record(store, replace(spec, attacks=named), {CLEAN: rows("hhhh"), "pgd": rows("hhbb")})


def test_where_nothing_held_no_model_is_called_the_most_robust(store: Store, tmp_path: Path) -> None:
    for model in ("a", "b"):
        deterministic(store, {CLEAN: "hhhw", "pgd": "bbbw"}, model=model)
    text = answer(store, tmp_path)
    assert "No model is robust: all 2 models have Arob 0.0 % (0.0–60.2) of 4 images." in text
    assert "Most robust" not in text


def test_probabilities_that_round_to_nothing_make_no_model_robust(store: Store, tmp_path: Path) -> None:
    for model, least in (("a", 1), ("b", 0)):
        spec = specification(model, n=50, stochastic=True)
        drawn_rows = {CLEAN: drawn([90] * 50, [90] * 50), "pgd": drawn([0] * 50, [least] + [0] * 49)}
        record(store, spec, drawn_rows)
    assert "No model is robust: all 2 models have Arob 0.0 %" in answer(store, tmp_path)


def test_the_answer_counts_the_models_that_do_not_differ_from_the_best(store: Store, tmp_path: Path) -> None:
    network(store, "best", 0.9, {"pgd": 0.80})
    assert answer(store, tmp_path / "0").endswith("of 360 images.")
    assert "The only model: best" in answer(store, tmp_path / "0")
    network(store, "near", 0.9, {"pgd": 0.79}, seed=1)
    assert "Most robust: best" in answer(store, tmp_path / "1")
    assert "The other model does not differ significantly from it (paired tests, 5 %, Holm)." in answer(store, tmp_path / "1")
    network(store, "far", 0.9, {"pgd": 0.2}, seed=2)
    assert "1 of the 2 others does not differ significantly from it" in answer(store, tmp_path / "2")


def test_the_answer_names_the_verdict_apart_from_the_accuracy(store: Store, tmp_path: Path) -> None:
    verdicts(store)
    text = answer(store, tmp_path)
    assert "images. Its usual protocol (pgd) shows 60.0 %, an overestimate of 0.0 points (0.0 to " in text
    assert "Verdict: confirmed." in text


@pytest.mark.parametrize(
    ("eps", "attack", "known"),
    [
        ("0.031", "pgd", "73.71 % at linf 8/255 (RobustBench)."),
        ("0.3", "pgd", "73.71 % at linf 8/255 (RobustBench), a smaller ball; in this one it is at most that."),
        ("0.02", "pgd", None),
        ("0.3", "rotation", None),
    ],
)
def test_accuracies_from_elsewhere_stand_above_tables_that_they_concern(
    store: Store, tmp_path: Path, eps: str, attack: str, known: str | None
) -> None:
    under(store, "net", attack, dataset="cifar10", eps=eps)
    text = text_of(index(store, tmp_path))
    assert ("Best robust accuracy known from elsewhere" in text) == (known is not None)
    if known is not None:
        assert f"Best robust accuracy known from elsewhere: {known}" in text


def test_natural_perturbations_make_no_model_robust(store: Store, tmp_path: Path) -> None:
    for model in ("a", "b"):
        under(store, model, "rotation")
    assert "Most accurate: " in answer(store, tmp_path)


def test_tabs_that_differ_in_the_rule_of_prediction_name_it(store: Store, tmp_path: Path) -> None:
    for kind, draws in (("draw", 1), ("vote", 8)):
        origin = {"prediction": {"kind": kind, "draws": draws}}
        spec = specification(kind, n=2, stochastic=True, origin=origin)
        record(store, spec, {label: drawn((90, 80), (90, 80)) for label in (CLEAN, "pgd")})
    labels = re.findall(r'data-label="([^"]*)"', index(store, tmp_path))
    assert sorted(labels) == ["papers, a single draw", "papers, vote of 8 draws"]


@pytest.mark.parametrize(("known", "shown"), [(1, False), (2, True)])
def test_the_number_of_parameters_has_a_column_if_most_models_have_one(
    store: Store, tmp_path: Path, known: int, shown: bool
) -> None:
    for number in range(3):
        provenance = {"parameters": 1000} if number < known else {}
        deterministic(store, {CLEAN: "hh", "pgd": "hb"}, model=f"net-{number}", provenance=provenance)
    assert ('data-key="parameters"' in index(store, tmp_path)) == shown


def test_the_lowest_accuracy_under_the_papers_attacks_is_called_that(store: Store, tmp_path: Path) -> None:
    letters = {CLEAN: "hhhh", "pgd": "hhhb", "ours": "bbbb"}
    deterministic(store, letters, spec={"paper_attacks": ["pgd"]})
    page = index(store, tmp_path)
    assert "Paper's<br>lowest" in html.unescape(page)
    assert "of those in the table of the paper" in page
    (run,) = (tmp_path / "runs").glob("*.html")
    assert "Lowest under one attack of the paper's75" in text_of(run.read_text()).replace(" 75", "75")


def test_the_page_of_an_incomplete_evaluation_has_every_reason_in_full(store: Store, tmp_path: Path) -> None:
    names = [f"attack-with-a-long-name-{number}" for number in range(20)]
    deterministic(store, {CLEAN: "hh", **dict.fromkeys(names, "h.")})
    page = index(store, tmp_path)
    (run,) = (tmp_path / "runs").glob("*.html")
    assert f"{', '.join(names)}: 1 of 2 samples" in run.read_text()
    (shown,) = re.findall("not ranked: ([^<]*)", page)
    assert len(shown) <= 90
