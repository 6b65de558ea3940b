"""The commands that read the record: report, show, compare, check and claims."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from kwbench.report import FORMATS
from support.command_line import FAST, Kwbench, refused
from support.small_registry import write_registry

CHECKED = ("--attack", "pgd", "--set", "pgd.steps=10", "--n", "128", "--eps", "0.05", "--tile", "64")


def test_report_writes_the_formats_asked_for(kwb: Kwbench, tmp_path: Path) -> None:
    kwb("evaluate", "small", *FAST)
    answer = kwb("report", "--html", "--markdown", "--csv", "--latex", "--output", "out")
    assert answer.code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "assets",
        "compare.html",
        "index.html",
        "leaderboard.md",
        "results.csv",
        "results.json",
        "runs",
        "tables.tex",
    ]
    for line in answer.out.splitlines():
        assert line.endswith("compare.html") or "small" in Path(line).read_text()
    with (tmp_path / "out" / "results.csv").open() as file:
        assert {row["attack"] for row in csv.DictReader(file)} == {"clean", "noop", "fgsm", "pgd"}
    assert kwb("report", "--csv", "--json", "--output", "more").json == {"files": ["more/results.csv"]}
    kwb("report")
    assert (tmp_path / "reports" / "index.html").exists()


def test_every_format_is_an_option_with_its_help(kwb: Kwbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = kwb("report", "-h").out
    for name, form in FORMATS.items():
        assert f"--{name}" in text
        assert form.option_help in text


def test_export_writes_the_images_that_an_evaluation_stores_by_default(kwb: Kwbench, tmp_path: Path) -> None:
    kwb("evaluate", "small", *FAST)
    answer = kwb("export", "small", "--adversarials", "images.npz")
    assert answer.code == 0
    with np.load(tmp_path / "images.npz", allow_pickle=False) as arrays:
        assert len(arrays["x"]) == len(arrays["y"]) > 0
        assert answer.out == f"images.npz: {len(arrays['x'])} images of small\n"
    refused(kwb("export", "smal", "--adversarials", "images.npz"), 2, "did you mean 'small'")


def test_report_without_a_database_is_refused(kwb: Kwbench) -> None:
    refused(kwb("report", "--html"), 3, "no such database")


def test_the_claims_are_a_format_of_report(kwb: Kwbench, tmp_path: Path) -> None:
    assert kwb("evaluate", "small", *FAST).code == 0
    assert kwb("report", "--claims", "--json").json == {"files": ["reports/claims.md", "reports/claims.html"]}
    assert (tmp_path / "reports" / "claims.md").read_text().startswith("# Claimed and measured")


def test_show_prints_the_newest_evaluation(kwb: Kwbench) -> None:
    kwb("evaluate", "small", *FAST)
    answer = kwb("show", "small")
    assert answer.code == 0
    assert "A_rob" in answer.out
    result = kwb("show", "small", "--json").json
    assert (result["model"], result["rows"]) == ("small", [])
    assert result["spec"]["origin"]["seed"] == 0
    refused(kwb("show", "smal"), 2, "did you mean 'small'")


def test_check_accepts_a_new_record_and_refuses_a_weaker_model(kwb: Kwbench, tmp_path: Path) -> None:
    strong = kwb("evaluate", "small", *CHECKED, "--json").json["a_rob"]["value"]
    assert kwb("check", "--baseline", "baseline.json", "--update").code == 0
    assert kwb("check", "--baseline", "baseline.json").code == 0
    # The same results in another database.
    assert kwb("evaluate", "small", *CHECKED, "--db", "new.db").code == 0
    assert kwb("check", "--baseline", "baseline.json", "--db", "new.db").code == 0
    # A model trained for one epoch instead of six.
    write_registry(tmp_path, epochs=1)
    weak = kwb("evaluate", "small", *CHECKED, "--json").json["a_rob"]["value"]
    assert strong - weak > 0.05
    answer = kwb("check", "small", "--baseline", "baseline.json", "--junit", "junit.xml", "--summary", "summary.md", "--json")
    assert answer.code == answer.json["exit_code"] == 1
    assert answer.json["models"][0]["verdict"] == "regression"
    case = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite/testcase")
    assert case is not None
    assert case.find("failure") is not None
    assert "Robustness check: regression" in (tmp_path / "summary.md").read_text()
    plain = kwb("check", "--baseline", "baseline.json")
    assert plain.code == 1
    assert "regression" in plain.out
    # A larger loss is allowed.
    assert kwb("check", "--baseline", "baseline.json", "--max-drop", "99").code == 0
    # The weaker results are accepted as the new baseline.
    assert kwb("check", "small", "--baseline", "baseline.json", "--update", "--json").json["models"] == ["small"]
    assert kwb("check", "--baseline", "baseline.json").code == 0


def test_check_exits_with_3_where_a_result_is_missing(kwb: Kwbench) -> None:
    kwb("evaluate", "small", *CHECKED)
    kwb("check", "--baseline", "baseline.json", "--update")
    kwb("evaluate", "small", "--attack", "noop", "--n", "16", "--db", "other.db")
    answer = kwb("check", "--baseline", "baseline.json", "--db", "other.db")
    assert answer.code == 3
    assert "could not tell" in answer.out


def test_check_refuses_missing_and_malformed_files(kwb: Kwbench, tmp_path: Path) -> None:
    refused(kwb("check", "--baseline", "baseline.json"), 3, "results.db: no such database", "kwbench evaluate")
    kwb("evaluate", "small", "--attack", "noop", "--n", "16")
    refused(kwb("check", "--baseline", "baseline.json"), 3, "baseline.json")
    (tmp_path / "baseline.json").write_text("{}")
    refused(kwb("check", "--baseline", "baseline.json"), 4, "baseline.json")
    refused(kwb("check", "--baseline", "baseline.json", "--alpha", "2"), 2, "alpha")


def test_compare_tests_two_models_on_the_same_samples(kwb: Kwbench) -> None:
    kwb("evaluate", "small", "small-random", "--attack", "fgsm", "--n", "32", "--tile", "32")
    answer = kwb("compare", "small", "small-random")
    assert answer.code == 0
    assert "A_rob: " in answer.out
    assert "p = " in answer.out
    (result,) = kwb("compare", "small", "small-random", "--json").json
    assert {result["first"], result["second"]} == {"small", "small-random"}
    assert 0 <= result["a_rob"]["p"] <= 1
    refused(kwb("compare", "small", "smal-random"), 2, "did you mean 'small-random'")


def test_claims_are_listed_linted_and_written_as_a_registry_without_a_database(kwb: Kwbench, tmp_path: Path) -> None:
    cells = kwb("claims", "--json").json
    assert len(cells) == 435
    assert cells[0].keys() >= {"paper", "claimed_percent", "status", "model", "suite", "measured", "strong", "commands"}
    assert "72 runnable" in kwb("claims", "--paper", "costa2020").out
    rules = {remark["rule"]: len(remark["cells"]) for remark in kwb("claims", "--lint", "--paper", "costa2020", "--json").json}
    assert rules["coarse grid"] == 48
    assert "short of eps" in kwb("claims", "--lint").out
    assert kwb("claims", "--registry", "papers.yaml").code == 0
    assert "cifar10/densenet121-kwta0.1-at" in kwb("models", "--registry", "papers.yaml").out
    before = (tmp_path / "papers.yaml").read_bytes()
    assert kwb("claims", "--registry", "papers.yaml").code == 0  # the commands of every claim start with it
    assert (tmp_path / "papers.yaml").read_bytes() == before
    (tmp_path / "mine.yaml").write_text("models: {}\n")
    refused(kwb("claims", "--registry", "mine.yaml"), 2, "nothing is overwritten")
    refused(kwb("claims", "--paper", "xiao"), 2, "did you mean 'xiao2020'")
    assert not (tmp_path / "results.db").exists()
